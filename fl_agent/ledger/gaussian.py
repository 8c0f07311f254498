"""Gaussian mechanisms without sampling, composed exactly (Dong, Roth, Su 2022, arXiv 1905.02383).

Each with noise multiplier z is a test between N(0, 1) and N(1/z, 1); so many of them, also chosen one after the other
with multipliers that stand beforehand, are one between N(0, 1) and N(μ, 1), μ² the sum of 1/z² (their corollary 3.3).
Renyi DP, which the ledger composes all kinds of mechanisms by, gives ε about a tenth more.
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr

#: Epsilon is bounded from above to this share of itself.
PRECISION = 1e-6
#: Of two logarithms, whose rounding errors are about 1e-14 in all that follows from a δ above 1e-300.
LEAST_DIFFERENCE = 1e-8


def log_delta_of(epsilon: float, mu: float) -> float:
    """Return log δ at an ε of 0 or more (Balle & Wang 2018, arXiv 1805.06530, theorem 8), or a bound above it."""
    above = float(log_ndtr(mu / 2 - epsilon / mu))
    below = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    # Two nearly equal numbers leave rounding alone; the first is a bound without the second.
    return above + math.log(-math.expm1(below - above)) if above - below > LEAST_DIFFERENCE else above


def gaussian_epsilon(mu_squared: float, log_delta: float) -> float:
    """Return an upper bound of ε.

    Parameters
    ----------
    mu_squared : float
        Sum over mechanisms of 1 / noise multiplier², 0 or more; infinity where something else is among them.
    log_delta : float
        Below 0.
    """
    if mu_squared == 0:
        return 0.0
    if not math.isfinite(mu_squared):
        return math.inf
    mu = math.sqrt(mu_squared)
    # Enough: beyond it the tail alone, Φ(μ/2 - ε/μ) <= exp(-(ε/μ - μ/2)² / 2), is at most δ.
    low, high = 0.0, mu_squared / 2 + mu * math.sqrt(-2 * log_delta)
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if log_delta_of(middle, mu) <= log_delta else (middle, high)
    return high
