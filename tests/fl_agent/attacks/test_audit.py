"""Privacy as an attacker measures it: below what is claimed, and above it as soon as the noise is missing.

Each run is audited with canaries (`canaries`) by the method of one run (`audit`), at 95 % confidence, so a bound that
is above the claim by chance would be one test in twenty at the edge; the honest bounds here stand far below it. Larger
campaigns: ``python -m tests.bench.attacks``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from fl_agent.accounting import descent_of, epsilon
from fl_agent.train import Recipe
from tests.fl_agent.attacks.audit import SHARES, Guesses, audit, guess, lower_bound, p_value
from tests.fl_agent.attacks.canaries import Faint, descent_scores, flip, head_scores
from tests.fl_agent.attacks.sums import NAMES, claimed, plan, sums_scores

CANARIES = 600
DELTA = 1e-5
FULL = Recipe(steps=8, sampling_rate=1.0, clip=1.0, learning_rate=1.0, momentum=0.0, averaged=0.0)
SAMPLED = Recipe(steps=16, sampling_rate=0.25, clip=1.0, learning_rate=1.0, momentum=0.0, averaged=0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("guesses", "delta", "published"),
    [
        (Guesses(1000, 100, 75), 1e-4, 0.673),  # appendix D
        (Guesses(100_000, 1510, 1439), 1e-5, 2.675),  # section 7, figure 11
    ],
)
def test_the_bound_is_the_published_one(guesses: Guesses, delta: float, published: float) -> None:
    assert lower_bound(guesses, delta, 0.05) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
def test_of_randomised_response_the_claim_is_refuted_at_most_once_in_20_and_a_third_of_it_nearly_always(
    epsilon: float,
) -> None:
    """The mechanism for which the theorem is exact: all outcomes are weighed, none is drawn."""
    made = 500
    likely = binom(made, 1 / (1 + np.exp(-epsilon)))

    def refuted(claim: float) -> float:
        least = next(right for right in range(made, -1, -1) if p_value(Guesses(made, made, right), claim, 0) >= 0.05)
        return float(likely.sf(least))

    assert 0.02 < refuted(epsilon) <= 0.05
    assert refuted(epsilon / 3) > 0.95


def test_delta_excuses_some_right_guesses_and_abstentions_do_not() -> None:
    guesses = Guesses(1000, 100, 90)
    bounds = [lower_bound(guesses, delta, 0.05) for delta in (0.0, 1e-5, 1e-4, 1e-3)]
    assert sorted(bounds, reverse=True) == bounds
    assert bounds[0] > bounds[-1] + 0.3
    assert p_value(Guesses(5000, 100, 90), 1.0, 1e-4) > p_value(guesses, 1.0, 1e-4)


def test_how_many_are_guessed_does_not_depend_on_the_coins() -> None:
    scores, coins = np.linspace(0, 1, 100), np.arange(100) >= 50
    for share in SHARES:
        perfect, reversed_ = guess(scores, coins, share), guess(scores, ~coins, share)
        assert perfect.made == reversed_.made == max(2, round(share * 100))
        assert (perfect.right, reversed_.right) == (perfect.made, 0)
    assert audit(np.zeros(100), coins, 0.0).epsilon == pytest.approx(audit(scores, coins, 0.0).epsilon)
    assert audit(scores, ~coins, 0.0).epsilon == 0


@pytest.mark.parametrize(
    ("recipe", "noise"), [(FULL, 10.7), (FULL, 4.0), (SAMPLED, 4.2)], ids=["full batch", "less noise", "lottery"]
)
def test_descent_keeps_its_claim_and_without_noise_it_would_not(recipe: Recipe, noise: float) -> None:
    coins = flip(CANARIES, 1)
    mechanism = descent_of("head", "all", CANARIES, recipe).model_copy(update={"noise_multiplier": noise})
    claim = epsilon([mechanism], DELTA)
    assert 0.9 < claim < 3.1
    assert audit(descent_scores(coins, recipe, noise, Faint(1.0)), coins, DELTA).epsilon < claim
    assert audit(descent_scores(coins, recipe, noise, Faint(0.0)), coins, DELTA).epsilon > claim


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "by samples"])
def test_an_eighth_of_the_noise_is_found(closed: bool) -> None:
    """Both ways in which `descend` takes a step are attacked."""
    coins = flip(CANARIES, 2)
    scores = descent_scores(coins, FULL, 10.7, Faint(0.125), closed=closed)
    assert audit(scores, coins, DELTA).epsilon > 1.0


def test_the_head_as_it_is_shipped_keeps_its_claim_and_without_noise_it_would_not() -> None:
    coins = flip(CANARIES, 3)
    for factor, broken in ((1.0, False), (0.0, True)):
        scores = head_scores(coins, 300, (3.0, DELTA), Faint(factor))
        assert (audit(scores, coins, DELTA).epsilon > 3.0) is broken


@pytest.mark.parametrize(("claim", "sampling_rate"), [(1.0, 1.0), (3.0, 1.0), (1.0, 0.5)])
def test_secure_sums_keep_their_claim_and_without_noise_they_would_not(
    tmp_path: Path, claim: float, sampling_rate: float
) -> None:
    """Mode DISTRIBUTED, against the coordinator and one hospital that works for it."""
    coins = flip(CANARIES, 4)
    agreed = plan(CANARIES, claim, DELTA, 4, sampling_rate)
    assert claimed(agreed) == pytest.approx(claim, rel=0.01)
    for place, quiet, broken in (("kept", ("colluding",), False), ("forgotten", NAMES, True)):
        scores = sums_scores(agreed, coins, tmp_path / place, quiet)
        assert (audit(scores, coins, DELTA).epsilon > claim) is broken
