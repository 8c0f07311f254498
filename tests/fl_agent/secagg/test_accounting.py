"""The accountant against closed forms, published bounds, an independent accountant and exact sums of probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy.special import logsumexp

from dicom_node.core.errors import ConfigError
from fl_agent.secagg.accounting import ORDERS, SummedNoise, epsilon, renyi, rounding_gap, variance_for

#: Noise as if of one honest hospital, in steps; wide enough that no gap remains.
CASES = [(0.01, 1.1, 1000, 1e-5), (0.1, 2.0, 200, 1e-4), (0.25, 4.0, 300, 1e-4), (0.02, 0.7, 50, 1e-6)]


def summed(
    multiplier: float, rate: float, *, sensitivity: int = 1000, honest: int = 1, dimension: int = 1
) -> SummedNoise:
    return SummedNoise(
        variance=round((multiplier * sensitivity) ** 2 / honest),
        honest=honest,
        dimension=dimension,
        sensitivity_squared=sensitivity**2,
        sampling_rate=rate,
    )


@pytest.mark.parametrize(("rate", "multiplier", "steps", "delta"), CASES)
def test_it_agrees_with_an_independent_renyi_accountant(
    rate: float, multiplier: float, steps: int, delta: float
) -> None:
    other = RdpAccountant(orders=list(ORDERS))
    other.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier)), steps)
    assert epsilon(summed(multiplier, rate), steps, delta) == pytest.approx(other.get_epsilon(delta), rel=1e-3)


@pytest.mark.parametrize(
    ("rate", "deviation", "steps"), [(0.1, 2.0, 50), (0.3, 3.0, 20), (0.02, 1.0, 100), (1.0, 4.0, 10)]
)
def test_it_is_above_the_exact_curve_of_the_sampled_discrete_gaussian_and_near_it(
    rate: float, deviation: float, steps: int
) -> None:
    """In one dimension the privacy loss of N_Z is known exactly; composed numerically it bounds ours from below."""
    exact = privacy_loss_distribution.from_discrete_gaussian_mechanism(
        deviation, sensitivity=1, sampling_prob=rate, value_discretization_interval=1e-3
    ).self_compose(steps)
    ours = epsilon(SummedNoise(round(deviation**2), 1, 1, 1, rate), steps, 1e-5)
    found = exact.get_epsilon_for_delta(1e-5)
    assert found <= ours * (1 + 1e-3)
    assert ours <= 1.35 * found


def test_a_smaller_claim_would_be_caught_by_that_curve() -> None:
    exact = privacy_loss_distribution.from_discrete_gaussian_mechanism(2.0, sensitivity=1, sampling_prob=0.1)
    claimed = epsilon(SummedNoise(8, 1, 1, 1, 0.1), 50, 1e-5)  # with twice the variance that is there
    assert exact.self_compose(50).get_epsilon_for_delta(1e-5) > claimed


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 5.0, 20.0])
def test_without_sampling_it_is_the_concentrated_bound(multiplier: float) -> None:
    """ρ-zCDP, ρ = 1 / (2 σ²): below Bun and Steinke's ρ + 2 √(ρ log 1/δ), and above the Gaussian mechanism's own ε."""
    rho, delta = 1 / (2 * multiplier**2), 1e-5
    found = epsilon(summed(multiplier, 1.0), 1, delta)
    assert found <= rho + 2 * math.sqrt(rho * math.log(1 / delta))
    gaussian = privacy_loss_distribution.from_gaussian_mechanism(multiplier).get_epsilon_for_delta(delta)
    assert gaussian <= found <= 1.3 * gaussian + 0.02


@pytest.mark.parametrize("order", [2, 3, 5, 9])
@pytest.mark.parametrize(("shift", "variance", "rate"), [(1, 1, 0.2), (3, 4, 0.5), (2, 1, 0.01), (1, 2, 1.0)])
def test_the_renyi_divergence_is_the_one_of_the_probabilities(
    order: int, shift: int, variance: int, rate: float
) -> None:
    """Slowly: the definition, summed over the integers, in both directions."""
    reach = np.arange(-400, 401)
    still = np.exp(-(reach**2) / (2 * variance))
    moved = np.exp(-((reach - shift) ** 2) / (2 * variance))
    still, moved = still / still.sum(), moved / moved.sum()
    mixed = (1 - rate) * still + rate * moved
    seen = (still > 1e-250) & (mixed > 1e-250)
    one, other = np.log(mixed[seen]), np.log(still[seen])
    forward = logsumexp(order * one + (1 - order) * other) / (order - 1)
    backward = logsumexp(order * other + (1 - order) * one) / (order - 1)
    found = renyi(order, rate, math.sqrt(variance) / shift)
    assert found == pytest.approx(forward, rel=1e-6)
    assert found >= backward - 1e-12


@pytest.mark.parametrize("hospitals", [2, 3, 5])
@pytest.mark.parametrize("variance", [1, 2, 3])
def test_the_sum_of_draws_is_as_near_to_a_discrete_gaussian_as_the_gap_says(hospitals: int, variance: int) -> None:
    reach = 60
    places = np.arange(-reach, reach + 1)
    one = np.exp(-(places**2) / (2 * variance))
    one /= one.sum()
    several = one
    for _ in range(hospitals - 1):
        several = np.convolve(several, one)
    middle = len(several) // 2
    wide = np.arange(-middle, middle + 1)
    single = np.exp(-(wide**2) / (2 * hospitals * variance))
    single /= single.sum()
    near = np.abs(wide) <= 6 * math.sqrt(hospitals * variance)  # beyond, binary64 has no digits left
    ratio = np.abs(np.log(several[near] / single[near])).max()
    gap = SummedNoise(variance, hospitals, 1, 1, 1.0).gap
    assert ratio <= gap + 1e-12
    if variance == 1:
        assert ratio > 1e-7  # it is no discrete Gaussian: to account it as one without the gap would be wrong


def test_the_gap_is_part_of_epsilon() -> None:
    narrow = SummedNoise(1, 10, 1000, 1, 0.1)
    assert epsilon(narrow, 10, 1e-5) > 2 * 10 * 1000 * narrow.gap
    wide = SummedNoise(100, 10, 4000, 100, 0.1)
    assert 0 <= wide.gap < 1e-300
    assert epsilon(wide, 300, 1e-5) == pytest.approx(
        epsilon(SummedNoise(1000, 1, 4000, 100, 0.1), 300, 1e-5), rel=1e-12
    )


@pytest.mark.parametrize("honest", [1, 3, 10])
def test_any_split_over_the_honest_reaches_the_central_noise(honest: int) -> None:
    central = epsilon(summed(2.0, 0.1, honest=1), 100, 1e-5)
    assert epsilon(summed(2.0, 0.1, honest=honest, dimension=4000), 100, 1e-5) == pytest.approx(central, rel=1e-5)


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_honest_hospitals() -> None:
    def at(**changes: float) -> float:
        terms = {"multiplier": 1.0, "rate": 0.1, "steps": 100, "honest": 3, **changes}
        steps = int(terms.pop("steps"))
        made = SummedNoise(
            round((terms["multiplier"] * 1000) ** 2 / 3), int(terms["honest"]), 10, 1000**2, terms["rate"]
        )
        return epsilon(made, steps, 1e-5)

    assert at(steps=50) < at() < at(steps=200)
    assert at(rate=0.05) < at() < at(rate=0.2) < at(rate=1.0)
    assert at(multiplier=2.0) < at() < at(multiplier=0.5)
    assert at(honest=4) < at() < at(honest=2)


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_the_least_variance_for_a_budget_keeps_it_and_one_less_does_not(target: float) -> None:
    noise = SummedNoise(1, 3, 4000, 4096**2, 0.25)
    variance = variance_for(target, 1e-4, 200, noise)
    kept = SummedNoise(variance, 3, 4000, 4096**2, 0.25)
    assert epsilon(kept, 200, 1e-4) <= target < epsilon(SummedNoise(variance - 1, 3, 4000, 4096**2, 0.25), 200, 1e-4)


def test_a_budget_that_no_variance_meets_is_said_so() -> None:
    with pytest.raises(ConfigError) as raised:
        variance_for(1e-4, 1e-9, 10**6, SummedNoise(1, 1, 1, 1 << 40, 1.0))
    assert raised.value.code == "epsilon"


@pytest.mark.parametrize(
    "numbers",
    [(0, 1, 1, 1, 0.1), (1, 0, 1, 1, 0.1), (1, 1, 0, 1, 0.1), (1, 1, 1, 0, 0.1), (1, 1, 1, 1, 0.0), (1, 1, 1, 1, 1.1)],
)
def test_impossible_noise_cannot_be_accounted(numbers: tuple) -> None:
    with pytest.raises(ConfigError):
        SummedNoise(*numbers)


def test_impossible_questions_are_refused() -> None:
    for steps, delta in ((0, 1e-5), (1, 0.0), (1, 1.0)):
        with pytest.raises(ConfigError):
            epsilon(summed(1.0, 0.1), steps, delta)
    with pytest.raises(ValueError, match="whole"):
        renyi(2.5, 0.1, 1.0)


@pytest.mark.parametrize(("variance", "rounding"), [(0.2, 0.12), (3.0, 0.12), (1.0, 0.25), (9.0, 0.3), (9.0, 4.0)])
def test_a_discrete_gaussian_is_a_rounded_continuous_one(variance: float, rounding: float) -> None:
    """Slowly: each whole number's probability, integrated over what was rounded to it."""
    whole, values = np.arange(-60, 61), np.arange(-60, 60, 1e-3)
    rounded = np.exp(-((whole[:, None] - values) ** 2) / (2 * rounding))
    rounded /= rounded.sum(0)
    density = np.exp(-(values**2) / (2 * (variance - rounding)))
    found = (rounded * density).sum(1) / density.sum()
    wanted = np.exp(-(whole**2) / (2 * variance))
    wanted /= wanted.sum()
    seen = np.abs(whole) <= 5 * math.sqrt(variance)  # beyond, rounding errors of the sum over values weigh more
    worst = np.abs(np.log(found[seen] / wanted[seen])).max()
    assert worst <= rounding_gap(rounding) + 1e-9
    if variance < 0.5:
        assert worst > 0.2 * rounding_gap(rounding)  # the bound is no idle one


def test_of_the_gaussian_that_is_rounded_the_least_variance_is_taken() -> None:
    noise = SummedNoise(10, 3, 5, 7, 1.0)
    assert noise.mu_squared == pytest.approx(7 / 26)
    assert SummedNoise(2, 3, 5, 7, 1.0).mu_squared == math.inf
    assert SummedNoise(10, 3, 5, 7, 0.5).mu_squared == math.inf
    assert rounding_gap() < 1e-33
