"""What mechanisms cost: against exact formulas, quadrature and composition, and the least noise for a budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from dicom_node.core.errors import ConfigError
from fl_agent.accounting import epsilon, noise_for
from secure_infer.card import Mechanism


def mechanism(**changed: object) -> Mechanism:
    usual = {"name": "head", "partition": "a", "kind": "DP-SGD", "patients": 1000, "clip": 1.0}
    return Mechanism.model_validate({**usual, "sampling_rate": 1.0, "noise_multiplier": 10.0, "steps": 60} | changed)


def exact_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism with sensitivity over noise `mu`, exactly (Balle & Wang 2018, theorem 8)."""

    def excess(bound: float) -> float:
        gone = stats.norm.cdf(mu / 2 - bound / mu) - math.exp(bound) * stats.norm.cdf(-mu / 2 - bound / mu)
        return float(gone) - delta

    return float(optimize.brentq(excess, 1e-6, 100.0))


@pytest.mark.parametrize(("multiplier", "steps"), [(9.6, 60), (3.0, 4), (12.4, 100)])
def test_epsilon_of_full_batches_is_that_of_the_exact_gaussian_mechanism(multiplier: float, steps: int) -> None:
    claimed = epsilon([mechanism(noise_multiplier=multiplier, steps=steps)], 1e-4)
    exact = exact_epsilon(math.sqrt(steps) / multiplier, 1e-4)
    assert exact <= claimed <= exact * 1.02


def test_epsilon_of_a_subsampled_step_is_that_of_the_definition() -> None:
    # One step with q = 0.2: the hockey-stick divergence between the mixture and the plain Gaussian, by quadrature.
    q, sigma, delta = 0.2, 1.0, 1e-4
    x, width = np.linspace(-12, 13, 400_001, retstep=True)
    plain = stats.norm.pdf(x, 0, sigma)
    mixed = (1 - q) * plain + q * stats.norm.pdf(x, 1, sigma)

    def excess(bound: float) -> float:
        removed = np.maximum(mixed - math.exp(bound) * plain, 0).sum() * width
        added = np.maximum(plain - math.exp(bound) * mixed, 0).sum() * width
        return float(max(removed, added) - delta)

    exact = float(optimize.brentq(excess, 1e-3, 20.0))
    claimed = epsilon([mechanism(sampling_rate=q, noise_multiplier=sigma, steps=1)], delta)
    assert exact <= claimed <= exact * 1.02 + 0.01


def test_mechanisms_compose_within_a_partition_and_not_across() -> None:
    one, two = mechanism(), mechanism(name="mean", noise_multiplier=8.0, steps=1)
    together = epsilon([one, two], 1e-4)
    assert together == pytest.approx(exact_epsilon(math.sqrt(60 / 100 + 1 / 64), 1e-4), rel=0.02)
    apart = epsilon([one, two.model_copy(update={"partition": "b"})], 1e-4)
    assert apart == pytest.approx(epsilon([one], 1e-4))
    assert apart < together


def test_noise_is_the_least_that_keeps_the_budget() -> None:
    beside = [mechanism(name="mean", noise_multiplier=8.0, steps=1)]
    found = noise_for(3.0, 1e-4, mechanism(), beside)
    assert epsilon([found, *beside], 1e-4) <= 3.0
    less = found.model_copy(update={"noise_multiplier": found.noise_multiplier * 0.98})
    assert epsilon([less, *beside], 1e-4) > 3.0


def test_a_delta_that_would_allow_publishing_a_patient_is_refused() -> None:
    with pytest.raises(ConfigError, match="delta must be below"):
        noise_for(3.0, 1e-3, mechanism())
