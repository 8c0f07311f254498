"""Exact composition of Gaussians: the definition, an independent accountant, and what rounding may not hide."""

from __future__ import annotations

import math

import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st

from fl_agent.ledger.gaussian import gaussian_epsilon, log_delta_of


def phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 1.0), (1.0, 1.0), (0.3, 0.2), (4.0, 2.5), (0.01, 0.05)])
def test_delta_is_that_of_the_definition(epsilon: float, mu: float) -> None:
    """P[x in S] - e^ε Q[x in S] for the best S, a half line, of N(μ, 1) and N(0, 1)."""
    edge = epsilon / mu + mu / 2
    assert math.exp(log_delta_of(epsilon, mu)) == pytest.approx(phi(mu - edge) - math.exp(epsilon) * phi(-edge))


def test_the_value_of_dong_roth_and_su() -> None:
    """1-GDP is (1, 0.126936737507)-DP, by their corollary 2.13."""
    assert math.exp(log_delta_of(1.0, 1.0)) == pytest.approx(0.126936737507, rel=1e-11)


@pytest.mark.parametrize(("multiplier", "delta"), [(0.5, 1e-5), (3.0, 1e-6), (12.0, 1e-4), (1.0, 1e-12)])
def test_epsilon_is_that_of_an_independent_accountant(multiplier: float, delta: float) -> None:
    exact = privacy_loss_distribution.from_gaussian_mechanism(multiplier, value_discretization_interval=1e-5)
    found = gaussian_epsilon(multiplier**-2, math.log(delta))
    assert found == pytest.approx(exact.get_epsilon_for_delta(delta), rel=1e-3, abs=1e-4)


@given(st.floats(1e-30, 1e6), st.floats(-700, -1e-3))
def test_epsilon_keeps_to_delta_and_no_less_would(mu_squared: float, log_delta: float) -> None:
    found, mu = gaussian_epsilon(mu_squared, log_delta), math.sqrt(mu_squared)
    assert 0 <= found < math.inf
    assert log_delta_of(found, mu) <= log_delta + 1e-6
    assert gaussian_epsilon(1.1 * mu_squared, log_delta) >= found
    if mu_squared > 1e-4 and found > 1e-3:
        assert log_delta_of(0.999 * found, mu) > log_delta


@pytest.mark.parametrize("mu", [1e-6, 1e-10, 1e-17])
def test_a_delta_that_rounding_would_hide_is_rounded_up(mu: float) -> None:
    exact = mu / math.sqrt(2 * math.pi)  # at ε = 0, for small μ: what two bells beside each other do not share
    assert math.log(exact) - 1e-6 <= log_delta_of(0.0, mu) <= math.log(0.5) + mu


def test_nothing_costs_nothing_and_what_is_no_gaussian_cannot_be_told() -> None:
    assert gaussian_epsilon(0.0, -10.0) == 0.0
    assert gaussian_epsilon(math.inf, -10.0) == math.inf
