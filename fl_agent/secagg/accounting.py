"""What the summed noise is worth: Renyi DP of the Poisson-sampled, distributed discrete Gaussian.

Three steps, each exact or an upper bound:

1. N_Z(0, s^2) on a sum whose integer vector moves by at most Δ: the moments E[(ν1/ν0)^k] for integer k are those of
   the continuous Gaussian, exp((k^2 - k) |μ|^2 / (2 s^2)), because a shift by kμ maps the integers onto themselves
   (Canonne, Kamath, Steinke 2020, arXiv 2004.00010). Mironov, Talwar, Zhang 2019 (arXiv 1908.10530) use only these
   and the symmetry of the noise, so their Poisson-sampled Renyi divergence at integer orders holds unchanged.
2. The sum of h independent N_Z(0, σ^2) is no discrete Gaussian, but its probabilities are within a factor e^±τ of
   those of N_Z(0, hσ^2), τ = 10 Σ_{k<h} exp(-2π²σ²k/(k+1)) (Kairouz, Liu, Steinke 2021, arXiv 2102.06387). Over d
   coordinates and T steps the factor is e^±η, η = Tdτ: (ε, δ) becomes (ε + 2η, e^η δ). With σ of several steps, η is
   far below rounding error.
3. Renyi DP to (ε, δ): Canonne, Kamath, Steinke 2020, Proposition 12.

Without sampling there is less to lose. N_Z(0, σ²) is what a CONTINUOUS Gaussian N(0, σ² - η²) becomes when each value g
is rounded to a whole y with probability proportional to exp(-(y - g)² / 2η²): by Poisson's summation the normaliser of
that rounding is the same for all g but for a factor 1 ± t, t = 2 Σ_k exp(-2π²η²k²), and so is that of N_Z, so that no
probability differs by more than a factor e^±κ, κ = log (1 + t) / (1 - t). Rounding commutes with whole shifts and is
post-processing: with κ added to τ, the mechanism is no worse than the Gaussian one with multiplier sqrt(hσ² - η²) / Δ,
whose compositions `ledger.gaussian` accounts exactly. η = 2 steps: κ is 2e-34.

What honest hospitals beyond h add, and the reduction mod 2^b, are post-processing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import gammaln, logsumexp

from dicom_node.core.errors import ConfigError

#: η², in steps squared: what of the variance is taken for the rounding of a continuous Gaussian.
ROUNDING: Final = 4
#: Integer orders, for the sampled mechanism.
ORDERS: Final[tuple[int, ...]] = (*range(2, 257), 320, 384, 512, 768, 1024)
#: Orders for a mechanism without sampling, whose bound holds at every order above 1.
FINE_ORDERS: Final[tuple[float, ...]] = (*(1 + one / 100 for one in range(1, 1000)), *ORDERS)


@dataclass(frozen=True)
class SummedNoise:
    """One step of the mechanism.

    Attributes
    ----------
    variance : int
        σ^2 of each hospital's draw, in steps squared.
    honest : int
        h: hospitals that keep their draw to themselves and whose input is in the sum.
    dimension : int
        d: coordinates that get noise.
    sensitivity_squared : int
        Δ^2: how far, squared, one patient moves the summed integers (`noise.conditional_limit`, `nearest_limit`).
    sampling_rate : float
        q: probability that a patient takes part in a step; 1 is everybody.

    Raises
    ------
    ConfigError
        A number is out of its range (``summed-noise``).
    """

    variance: int
    honest: int
    dimension: int
    sensitivity_squared: int
    sampling_rate: float

    def __post_init__(self) -> None:
        counts = (self.variance, self.honest, self.dimension, self.sensitivity_squared)
        if min(counts) < 1 or not 0 < self.sampling_rate <= 1:
            raise ConfigError(
                "variance, hospitals, coordinates, sensitivity and rate must be positive", code="summed-noise"
            )

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the honest hospitals' noise over the sensitivity."""
        return math.sqrt(self.honest * self.variance / self.sensitivity_squared)

    @property
    def gap(self) -> float:
        """τ: the largest log-ratio, in one coordinate, of the sum's probabilities to a discrete Gaussian's."""
        return 10 * sum(math.exp(-2 * math.pi**2 * self.variance * one / (one + 1)) for one in range(1, self.honest))

    @property
    def mu_squared(self) -> float:
        """1 / multiplier² of the continuous Gaussian that is rounded; infinity with sampling, or where none is left."""
        left = self.honest * self.variance - ROUNDING
        return self.sensitivity_squared / left if self.sampling_rate == 1 and left > ROUNDING else math.inf


def rounding_gap(variance: float = ROUNDING) -> float:
    """κ: the largest log-ratio, in one coordinate, of a discrete Gaussian's probabilities to a rounded one's.

    Parameters
    ----------
    variance : float
        η², in steps squared; at least 1/20, below which t is no longer less than 1.
    """
    return 2 * math.atanh(2 * sum(math.exp(-2 * math.pi**2 * variance * one**2) for one in range(1, 20)))


def epsilon(noise: SummedNoise, steps: int, delta: float) -> float:
    """Return ε of `steps` steps, for one patient added or removed.

    Parameters
    ----------
    noise : SummedNoise
    steps : int
    delta : float
        Above 0, below 1.
    """
    if steps < 1 or not 0 < delta < 1:
        raise ConfigError("steps must be positive and delta between 0 and 1", code="summed-noise")
    factor = steps * noise.dimension * noise.gap
    # δ is given before the factor, so that it holds after it.
    left = math.log(delta) - factor
    sampled = noise.sampling_rate < 1
    bounds: list[float] = [
        to_epsilon(order, steps * renyi(order, noise.sampling_rate, noise.noise_multiplier), left)
        for order in (ORDERS if sampled else FINE_ORDERS)
    ]
    return max(0.0, min(bounds)) + 2 * factor


def to_epsilon(order: float, divergence: float, log_delta: float) -> float:
    """Return the ε that a Renyi divergence of this order gives at a δ (step 3); may be negative."""
    return divergence + math.log1p(-1 / order) - (log_delta + math.log(order)) / (order - 1)


def renyi(order: float, sampling_rate: float, noise_multiplier: float) -> float:
    """Return the Renyi divergence of one step.

    Parameters
    ----------
    order : float
        Above 1; a whole number unless `sampling_rate` is 1.
    sampling_rate, noise_multiplier : float
    """
    if sampling_rate == 1:
        return order / (2 * noise_multiplier**2)
    whole = int(order)
    if whole != order:
        raise ValueError("the sampled mechanism is accounted at whole orders")
    powers = np.arange(whole + 1)
    log_binomial = gammaln(whole + 1) - gammaln(powers + 1) - gammaln(whole - powers + 1)
    log_terms = (
        log_binomial
        + powers * math.log(sampling_rate)
        + (whole - powers) * math.log1p(-sampling_rate)
        + (powers**2 - powers) / (2 * noise_multiplier**2)
    )
    return float(logsumexp(log_terms)) / (whole - 1)


def variance_for(target: float, delta: float, steps: int, noise: SummedNoise) -> int:
    """Return the least variance of each hospital's draw that keeps `steps` steps within `target`.

    Parameters
    ----------
    target, delta : float
    steps : int
    noise : SummedNoise
        Its variance is not read.

    Raises
    ------
    ConfigError
        No variance below 2^40 suffices (``epsilon``).
    """

    def within(variance: int) -> bool:
        tried = SummedNoise(variance, noise.honest, noise.dimension, noise.sensitivity_squared, noise.sampling_rate)
        return epsilon(tried, steps, delta) <= target

    low, high = 0, 1
    while not within(high):
        low, high = high, 2 * high
        if high > 1 << 40:
            raise ConfigError(f"epsilon {target:g} cannot be met; take a larger step", code="epsilon")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high
