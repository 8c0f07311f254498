"""The one accountant against published values, closed forms and an independent accountant, alone and mixed."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fl_agent.ledger.accountant import LIFELONG_ORDERS, Loss, loss, total
from fl_agent.ledger.mechanisms import read
from fl_agent.secagg.accounting import ORDERS, SummedNoise, epsilon, rounding_gap
from secure_infer.card import Bound, Distributed, Mechanism
from tests.fl_agent.ledger.site import training

DELTA = 1e-5


def sgd(rate: float, multiplier: float, steps: int) -> Mechanism:
    return training(steps, multiplier, rate)


def summed(variance: int = 10**6, honest: int = 3, steps: int = 100) -> Distributed:
    return Distributed(
        name="head", patients=500, sampling_rate=0.1, steps=steps, variance=variance, honest=honest, dimension=4000,
        sensitivity_squared=10**6,
    )  # fmt: skip


def by_mironov(found: Loss, delta: float) -> float:
    """The looser conversion that the published values were computed with (Mironov 2017, Proposition 3)."""
    return min(r + math.log(1 / delta) / (order - 1) for order, r in zip(ORDERS, found.curve, strict=True))


@pytest.mark.parametrize(
    ("rate", "multiplier", "steps", "published"),
    [
        (0.01, 4.0, 10_000, 1.26),  # Abadi et al. 2016, section 3.2: the moments accountant
        (256 / 60_000, 1.3, 15 * 60_000 // 256, 1.19),  # TensorFlow Privacy, MNIST tutorial's table
        (256 / 60_000, 1.1, 60 * 60_000 // 256, 3.01),
    ],
)
def test_published_values_are_reproduced_and_the_better_conversion_is_below(
    rate: float, multiplier: float, steps: int, published: float
) -> None:
    found = loss(sgd(rate, multiplier, steps))
    assert by_mironov(found, DELTA) == pytest.approx(published, abs=0.006)
    assert found.planned(DELTA) < published


def test_opacus_published_mixture_is_reproduced() -> None:
    """The docstring of opacus.accountants.analysis.rdp."""
    found = total([loss(sgd(1e-5, 1.0, 10)), loss(sgd(1e-4, 3.0, 4))])
    assert found.planned(DELTA) == pytest.approx(0.336, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "multiplier", "steps", "delta"),
    list(itertools.product([0.005, 0.1, 1.0], [0.8, 2.0, 10.0], [1, 300], [1e-4, 1e-7])),
)
def test_it_agrees_with_an_independent_accountant(rate: float, multiplier: float, steps: int, delta: float) -> None:
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier))
    other = RdpAccountant(orders=list(ORDERS))
    other.compose(event, steps)
    found = loss(sgd(rate, multiplier, steps))
    assert replace(found, mu_squared=math.inf).planned(delta) == pytest.approx(other.get_epsilon(delta), rel=1e-6)
    if rate == 1:  # then there is an exact one
        exact = PLDAccountant(value_discretization_interval=1e-3)
        exact.compose(event, steps)
        assert found.planned(delta) == pytest.approx(exact.get_epsilon(delta), rel=1e-3, abs=1e-3)
        assert found.planned(delta) < other.get_epsilon(delta)


def test_mixed_mechanisms_compose_above_the_numerical_optimum_and_near_it() -> None:
    parts = [(0.1, 2.0, 100), (0.02, 1.0, 200), (1.0, 4.0, 5)]
    tight = PLDAccountant(value_discretization_interval=1e-3)
    for rate, multiplier, steps in parts:
        tight.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier)), steps)
    tight.compose(dp_event.LaplaceDpEvent(5.0))  # 0.2-DP
    found = total([*(loss(sgd(*one)) for one in parts), loss(Bound(name="other", patients=1, epsilon=0.2))])
    optimum = tight.get_epsilon(DELTA)
    assert optimum <= found.planned(DELTA) <= 1.2 * optimum
    assert found.planned(DELTA) < found.lifelong(DELTA) <= 1.2 * found.planned(DELTA)
    short = total([loss(sgd(*one)) for one in parts[:2]])
    assert short.planned(DELTA) < optimum  # leaving one out would be seen


@pytest.mark.parametrize(("deviation", "steps"), [(4.0, 3), (6.0, 20), (20.0, 100)])
def test_without_sampling_the_discrete_gaussian_is_nearly_the_continuous_one(deviation: float, steps: int) -> None:
    """In one dimension its privacy loss is known exactly; composed numerically it bounds ours from below."""
    exact = privacy_loss_distribution.from_discrete_gaussian_mechanism(
        deviation, sensitivity=1, value_discretization_interval=1e-4
    )
    least = exact.self_compose(steps).get_epsilon_for_delta(DELTA)
    noise = summed(round(deviation**2), 1, steps).model_copy(
        update={"sampling_rate": 1.0, "sensitivity_squared": 1, "dimension": 1}
    )
    found = loss(noise)
    # Of its variance, 4 steps squared are given away for what rounds a continuous Gaussian.
    given_away = deviation / math.sqrt(deviation**2 - 4)
    assert 0.99 * least <= found.planned(DELTA) <= 1.05 * given_away * least
    assert loss(noise.model_copy(update={"variance": noise.variance * 2})).planned(DELTA) < least
    if deviation == 20.0:
        assert found.planned(DELTA) < 0.95 * replace(found, mu_squared=math.inf).planned(DELTA)


def test_one_mechanism_of_another_kind_is_enough_to_need_the_general_bound() -> None:
    plain, sampled = loss(sgd(1.0, 10.0, 20)), loss(sgd(0.1, 3.0, 5))
    bound, coarse = loss(Bound(name="other", patients=1, epsilon=0.2)), loss(summed(variance=1, steps=1))
    twice = total([plain, plain])
    assert twice.planned(DELTA) == pytest.approx(loss(sgd(1.0, 10.0, 40)).planned(DELTA), rel=1e-12)
    assert twice.planned(DELTA) < replace(twice, mu_squared=math.inf).planned(DELTA)
    for other in (sampled, bound, coarse):
        assert total([plain, other]).mu_squared == math.inf
        assert total([plain, other]).planned(DELTA) > plain.planned(DELTA)


def test_summed_noise_is_accounted_as_secure_aggregation_does_and_alone_it_is_weaker() -> None:
    mechanism = summed()
    noise = SummedNoise(mechanism.variance, 3, 4000, mechanism.sensitivity_squared, 0.1)
    assert loss(mechanism).planned(DELTA) == pytest.approx(epsilon(noise, 100, DELTA), rel=1e-12)
    assert loss(mechanism, alone=True).factor == pytest.approx(
        100 * 4000 * rounding_gap(), rel=1e-9, abs=0
    )  # one draw is no sum
    single = SummedNoise(mechanism.variance, 1, 4000, mechanism.sensitivity_squared, 0.1)
    assert loss(mechanism, alone=True).planned(DELTA) == pytest.approx(epsilon(single, 100, DELTA), rel=1e-12)
    assert loss(mechanism, alone=True).planned(DELTA) > loss(mechanism).planned(DELTA)


def test_coarse_summed_noise_brings_its_distance_from_a_gaussian_along() -> None:
    coarse = loss(summed(variance=1, honest=3, steps=1).model_copy(update={"sensitivity_squared": 1}))
    assert coarse.factor > 0
    both = total([coarse, coarse])
    assert both.factor == 2 * coarse.factor
    without = Loss(both.curve)
    assert both.planned(DELTA) > without.planned(DELTA) + 2 * both.factor


def test_site_noise_is_worth_the_same_alone() -> None:
    assert np.array_equal(loss(training()).curve, loss(training(), alone=True).curve)


@pytest.mark.parametrize("size", [0.01, 0.3, 1.0, 4.0])
def test_a_pure_bound_keeps_its_epsilon_and_composes_no_worse_than_by_adding(size: float) -> None:
    once = loss(Bound(name="search", patients=1, epsilon=size)).planned(DELTA)
    assert once <= size + math.log(1 / DELTA) / (max(ORDERS) - 1)
    many = loss(Bound(name="search", patients=1, epsilon=size, steps=50)).planned(DELTA)
    assert many <= 50 * size + math.log(1 / DELTA) / (max(ORDERS) - 1)


def test_the_curve_of_a_pure_bound_is_above_that_of_randomised_response() -> None:
    """The most revealing pure mechanism there is (Kairouz, Oh, Viswanath 2015), by the definition."""
    for size in (0.1, 1.0, 3.0):
        curve = loss(Bound(name="x", patients=1, epsilon=size)).curve
        heads = math.exp(size) / (1 + math.exp(size))
        for order, found in zip(ORDERS[:30], curve[:30], strict=True):
            moment = heads**order * (1 - heads) ** (1 - order) + (1 - heads) ** order * heads ** (1 - order)
            assert found >= math.log(moment) / (order - 1) - 1e-12


def test_the_delta_of_bounds_is_taken_from_the_sites_delta() -> None:
    one = Bound(name="x", patients=1, epsilon=0.5, delta=4e-6)
    assert loss(one).planned(DELTA) > loss(one.model_copy(update={"delta": 0.0})).planned(DELTA)
    assert loss(one.model_copy(update={"steps": 3})).planned(DELTA) == math.inf
    assert total([loss(one)] * 3).lifelong(DELTA) == math.inf


def test_nothing_released_costs_nothing() -> None:
    assert total([]).planned(DELTA) == total([]).lifelong(DELTA) == 0.0


def test_the_lifelong_bound_holds_whichever_order_turns_out_best() -> None:
    """Each order alone at its share of delta, so that all together fail with probability delta at most."""
    found = loss(training())
    share = DELTA / len(LIFELONG_ORDERS)
    at = dict(zip(ORDERS, found.curve, strict=True))
    each = [at[o] + math.log1p(-1 / o) - (math.log(share) + math.log(o)) / (o - 1) for o in LIFELONG_ORDERS]
    assert found.lifelong(DELTA) == pytest.approx(min(each), rel=1e-12)


@pytest.mark.parametrize("mechanism", [training(), summed(), Bound(name="x", patients=3, epsilon=1.0, delta=1e-7)])
def test_a_mechanism_survives_its_json_form(mechanism: Mechanism) -> None:
    assert read(mechanism.model_dump(mode="json")) == mechanism
