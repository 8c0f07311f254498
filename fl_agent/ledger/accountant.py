"""One accountant over everything that a site's patients went through: Renyi DP (Mironov 2017, arXiv 1702.07476).

Renyi divergences of a fixed order add up over mechanisms of any kind, also where each is chosen after the releases of
those before it (Feldman & Zrnic 2021, arXiv 2008.11193); so each mechanism becomes one curve, and curves are added:

- sampled or plain Gaussian, and the discrete Gaussian summed over hospitals: `secagg.accounting`;
- epsilon-DP: order x epsilon^2 / 2, or epsilon where that is less (Bun & Steinke 2016, arXiv 1605.02065, Prop. 1.4);
- (epsilon, delta)-DP: with probability delta it tells all, else it is epsilon-DP (Kairouz, Oh, Viswanath 2015, arXiv
  1311.0776), so its delta is taken from what the conversion may use.

A plan of nothing but Gaussians without sampling, discrete or not, is accounted exactly besides (`gaussian`), and the
smaller bound holds. The best order of a PLAN, whose terms stand before its first release, may be read off the finished
curve. Over the life of a site the terms of later runs depend on earlier releases, and with them the best order; then
each order gets an equal share of delta, which holds for whichever is best (union bound). That costs 10 to 20 % of
epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secure_infer.card import Bound, Distributed

from ..secagg.accounting import ORDERS, SummedNoise, renyi, rounding_gap, to_epsilon
from .gaussian import gaussian_epsilon
from .mechanisms import Spending

#: Few, since each costs a share of delta; spread so that a good one is near for any epsilon between 0.05 and 30.
LIFELONG_ORDERS: Final[tuple[int, ...]] = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256)


@dataclass(frozen=True)
class Loss:
    """An upper bound on what one patient lost.

    Attributes
    ----------
    curve : ndarray of float64, shape (orders,)
        Renyi divergence at each of `secagg.accounting.ORDERS`, in either direction.
    factor : float
        Largest log-ratio of the true probabilities to those that `curve` is about (`SummedNoise.gap`).
    delta : float
        Probability of an outcome that `curve` does not cover.
    mu_squared : float
        See `gaussian.gaussian_epsilon`; what it leaves out are `factor` and `delta`.
    """

    curve: NDArray[np.float64]
    factor: float = 0.0
    delta: float = 0.0
    mu_squared: float = math.inf

    def planned(self, delta: float) -> float:
        """Return epsilon of a plan whose terms were all fixed before its first release."""
        by_orders = self._epsilon(ORDERS, delta, 1)
        if not math.isfinite(self.mu_squared):
            return by_orders
        return min(by_orders, gaussian_epsilon(self.mu_squared, math.log(delta) - self.factor) + 2 * self.factor)

    def lifelong(self, delta: float) -> float:
        """Return epsilon where terms may have been chosen, and runs cut short, after earlier releases."""
        return self._epsilon(LIFELONG_ORDERS, delta, len(LIFELONG_ORDERS))

    def _epsilon(self, orders: tuple[int, ...], delta: float, shares: int) -> float:
        if not (self.curve.any() or self.delta):
            return 0.0  # nothing was released
        left = delta - self.delta
        if left <= 0:
            return math.inf
        log_delta = math.log(left / shares) - self.factor
        divergences = dict(zip(ORDERS, self.curve.tolist(), strict=True))
        bounds = [to_epsilon(order, divergences[order], log_delta) for order in orders]
        return max(0.0, min(bounds)) + 2 * self.factor


def loss(spending: Spending, *, alone: bool = False) -> Loss:
    """Account one mechanism.

    Parameters
    ----------
    spending : Spending
    alone : bool
        Whether every other hospital colludes, so that only this site's own noise counts.
    """
    if isinstance(spending, Bound):
        orders = np.array(ORDERS)
        curve = np.minimum(orders * spending.epsilon**2 / 2, spending.epsilon)
        return Loss(spending.steps * curve, delta=min(1.0, spending.steps * spending.delta))
    if isinstance(spending, Distributed):
        noise = SummedNoise(
            spending.variance,
            1 if alone else spending.honest,
            spending.dimension,
            spending.sensitivity_squared,
            spending.sampling_rate,
        )
        curve = spending.steps * _gaussian(noise.sampling_rate, noise.noise_multiplier)
        factor = spending.steps * noise.dimension * (noise.gap + rounding_gap())
        return Loss(curve, factor=factor, mu_squared=spending.steps * noise.mu_squared)
    curve = spending.steps * _gaussian(spending.sampling_rate, spending.noise_multiplier)
    plain = spending.sampling_rate == 1
    return Loss(curve, mu_squared=spending.steps / spending.noise_multiplier**2 if plain else math.inf)


def total(losses: Iterable[Loss]) -> Loss:
    """Compose."""
    found = list(losses)
    curve = np.sum([one.curve for one in found], axis=0) if found else np.zeros(len(ORDERS))
    return Loss(
        curve,
        sum(one.factor for one in found),
        sum(one.delta for one in found),
        sum(one.mu_squared for one in found),
    )


@cache
def _gaussian(sampling_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    found = np.array([renyi(order, sampling_rate, noise_multiplier) for order in ORDERS])
    bounded: NDArray[np.float64] = np.maximum(found, 0.0)  # rounding of sums near 1 must not give budget back
    return bounded
