"""A plan has one spelling, and what a round may do follows from it and from nothing that a coordinator says."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from dicom_node.core.errors import ConfigError, ProtocolError
from fl_agent.accounting import descent_of, noise_for
from fl_agent.figures import auc
from fl_agent.head import RECIPE
from fl_agent.learning import metrics, server
from fl_agent.learning.plan import Plan
from fl_agent.learning.propose import assumed_honest
from fl_agent.learning.schedule import factor
from fl_agent.learning.server import Training
from fl_agent.learning.state import State, read
from fl_agent.learning.terms import calibrated, epsilons, header, model_hash, releases, spendings, variance
from fl_agent.ledger import accountant
from tests.fl_agent.learning.hospitals import CHANNELS, plan


@pytest.mark.parametrize("spoil", [
    lambda text: text + b" ",
    lambda text: text.replace(b'"bits":32', b'"bits": 32'),
    lambda text: text.replace(b'"bits":32,', b""),  # a default that is not written
    lambda text: text.replace(b'"format":1', b'"format":2'),
    lambda text: text.replace(b'"mode":"distributed"', b'"mode":"site"'),  # honest hospitals that nobody counts
    lambda text: text.replace(b'"patients":20', b'"patients":NaN'),
    lambda text: text[:-1],
])  # fmt: skip
def test_a_plan_in_any_other_spelling_is_refused(spoil) -> None:
    content = plan().content
    assert Plan.read(content).digest == plan(options={"run": bytes.fromhex(json.loads(content)["run"])}).digest
    with pytest.raises(ProtocolError) as error:
        Plan.read(spoil(content))
    assert error.value.code == "malformed-plan"


@pytest.mark.parametrize("mode", ["site", "distributed"])
def test_the_noise_is_the_least_that_keeps_the_claim(mode: str) -> None:
    agreed = plan(mode, epsilon=2.0, rounds=20)
    assert epsilons(agreed).claimed == pytest.approx(2.0, rel=0.01)
    assert epsilons(agreed).claimed <= 2.0
    spent = [one for release in releases(agreed) for one in spendings(agreed, release)]
    assert {one.steps for one in spent} == {1, 20}
    assert accountant.total(map(accountant.loss, spent)).planned(agreed.delta) == epsilons(agreed).claimed
    if mode == "distributed":
        assert epsilons(agreed).alone > epsilons(agreed).claimed
        drawn = agreed.honest * variance(agreed, releases(agreed)[1])
        assert drawn >= agreed.descent.noise_multiplier**2 * agreed.resolution**2


def test_spare_contributions_are_paid_for() -> None:
    assert plan(spare=4).descent.noise_multiplier > plan().descent.noise_multiplier
    assert epsilons(plan(spare=4)).claimed <= 3.0


def test_a_budget_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        calibrated(plan(options={"centre_noise": 0.5}), 0.1)
    assert error.value.code == "epsilon"


def test_a_round_is_bound_to_plan_and_state() -> None:
    agreed = plan()
    assert len({model_hash(agreed, b"a"), model_hash(agreed, b"b"), model_hash(plan(), b"a")}) == 3
    cohort = [bytes.fromhex(one.identity) for one in agreed.members]
    terms = header(agreed, 0, b"state", 7, cohort)
    assert terms.round == 7
    assert terms.privacy.epsilon == epsilons(agreed).claimed
    assert header(agreed, 0, b"state", 7, cohort[::-1]).content == terms.content
    assert header(agreed, 1, b"state", 7, cohort).content != terms.content


def test_a_cohort_without_enough_honest_hospitals_has_no_terms() -> None:
    sizes = {f"site-{number}": 50 for number in range(5)}
    agreed = plan(sizes=sizes, options={})
    assert agreed.honest == assumed_honest(5) == 3
    cohort = [bytes.fromhex(one.identity) for one in agreed.members]
    # Four of those who are asked must stay, of whom one may collude: three honest ones are left.
    assert header(agreed, 0, b"", 1, cohort[:4]).threshold == 4
    with pytest.raises(ProtocolError):
        header(agreed.model_copy(update={"honest": 5}), 0, b"", 1, cohort[:4])
    with pytest.raises(ProtocolError) as raised:
        header(agreed, 0, b"", 1, cohort[:3])
    assert raised.value.code == "cohort-too-small"


def test_a_state_that_is_not_numbers_is_refused() -> None:
    agreed = plan()
    state = State(2, np.ones(CHANNELS, np.float32), np.arange(agreed.dimension, dtype=np.float32))
    found = read(agreed, state.encode())
    assert (found.done, *found.weights) == (2, *state.weights)
    state.weights[3] = np.nan
    for content in (state.encode(), b"", state.encode()[:-1], State(5, found.centre, found.weights).encode()):
        with pytest.raises(ProtocolError) as error:
            read(agreed, content)
        assert error.value.code == "malformed-state"


def test_what_the_coordinator_knows_survives_being_written() -> None:
    agreed = plan()
    training = server.replace(Training.start(agreed), done=3, averaged=2, least=0.25)
    assert vars(Training.read(training.encode())).keys() == vars(training).keys()
    assert Training.read(training.encode()).encode() == training.encode()
    assert Training.read(Training.start(agreed).encode()).least == np.inf


def test_sums_of_metrics_give_loss_accuracy_and_area() -> None:
    rng = np.random.default_rng(0)
    patients = np.sort(np.concatenate([np.arange(300), rng.integers(0, 300, 200)]))
    labels = (np.arange(300) % 3)[patients]
    logits = rng.normal(size=(500, 3)) + 2 * np.eye(3)[labels]
    rows = metrics.of_patients(logits, labels, patients)
    assert np.linalg.norm(rows, axis=1).max() <= metrics.NORM
    found = metrics.read(rows.sum(0), 300)
    assert found.patients == 300
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mean = np.array([probabilities[patients == one].mean(0) for one in range(300)])
    truth = np.arange(300) % 3
    assert found.accuracy == pytest.approx((mean.argmax(1) == truth).mean())
    assert found.loss == pytest.approx(np.minimum(-np.log(mean[np.arange(300), truth]), metrics.LARGEST_LOSS).mean())
    assert found.auc == pytest.approx(auc(1 - mean[:, 0], truth > 0), abs=0.01)
    band = ((1 - mean[:, 0]) >= 0.3) & ((1 - mean[:, 0]) < 0.6)
    assert found.undetermined == pytest.approx(band.mean())


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_learning_rate_only_falls_and_never_vanishes(schedule: str) -> None:
    agreed = plan(rounds=10, schedule=schedule)
    rates = [factor(agreed, done) for done in range(1, agreed.sums)]
    assert rates[0] == 1.0
    assert all(0 < after <= before for before, after in itertools.pairwise(rates))
    assert (rates[-1] == 1.0) == (schedule == "constant")


def test_the_best_round_is_the_one_whose_weights_had_the_least_noised_loss() -> None:
    agreed = plan(rounds=3, published="best", options={"centre_noise": None})
    training = Training.start(agreed)
    weights = []
    for loss in (0.5, 0.1, 0.3):
        measured = np.zeros(metrics.LENGTH)
        measured[0] = loss * sum(one.patients for one in agreed.members) * agreed.metrics_weight / metrics.NORM
        weights.append(training.weights)
        training, found = server.after(agreed, training, [np.full(agreed.dimension, -1.0), measured], agreed.members)
        assert found is not None
        assert found.loss == pytest.approx(loss * metrics.LARGEST_LOSS)
    assert np.array_equal(training.best, weights[1])
    bias = server.published(agreed, training)["head.bias"]
    assert not np.array_equal(bias, server.published(agreed.model_copy(update={"descent": agreed.descent.model_copy(
        update={"published": "last"})}), training)["head.bias"])  # fmt: skip


@pytest.mark.parametrize("budget", [1.0, 3.0, 8.0])
def test_hospitals_together_need_no_more_noise_than_one_pooled_set(budget: float) -> None:
    agreed = plan("distributed", epsilon=budget, rounds=120, options={"metrics_weight": 0.0, "centre_noise": None})
    patients = sum(one.patients for one in agreed.members)
    recipe = replace(RECIPE, steps=120)
    pooled = noise_for(budget, agreed.delta, descent_of("head", "training patients", patients, recipe))
    assert 0.97 * pooled.noise_multiplier < agreed.descent.noise_multiplier <= 1.002 * pooled.noise_multiplier
