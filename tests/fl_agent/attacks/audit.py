"""Lower bounds of ε from one training run (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846).

Each of m canaries joins the training set on a fair coin of its own. The attacker sees what training released, guesses
the coins of the r canaries that it is surest of, and v guesses are right. If training were (ε, δ)-private, v or more
right guesses would have at most the probability `p_value`; so an ε at which that is below 1 - confidence is refuted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

#: Shares of the canaries that are guessed; the best counts, at a significance divided by their number.
SHARES = (0.02, 0.1, 0.3, 0.9)
#: No bound is sought beyond this: 10^6 canaries that are all guessed right give 13.
LARGEST = 50.0


@dataclass(frozen=True)
class Guesses:
    """What an attacker achieved.

    Attributes
    ----------
    canaries : int
        m, each included with probability 1/2.
    made : int
        r; the attacker abstained from the others.
    right : int
        v
    """

    canaries: int
    made: int
    right: int


@dataclass(frozen=True)
class Bound:
    """A lower bound of ε, and the guesses that gave it."""

    epsilon: float
    guesses: Guesses


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Bound the probability of so many right guesses under (ε, δ)-privacy (Theorem 5.2).

    P[V >= v] + 2 m δ max_i P[v > V >= v - i] / i, where V is binomial: r guesses, each right with probability
    e^ε / (1 + e^ε), as of randomised response.
    """
    likely = binom(guesses.made, expit(epsilon))
    tail = float(likely.sf(guesses.right - 1))
    if guesses.right == 0 or delta == 0:
        return min(1.0, tail)
    missing = np.arange(1, guesses.right + 1)
    near = (likely.cdf(guesses.right - 1) - likely.cdf(guesses.right - 1 - missing)) / missing
    return min(1.0, tail + 2 * guesses.canaries * delta * float(near.max()))


def lower_bound(guesses: Guesses, delta: float, significance: float) -> float:
    """Return the ε below which every (ε, δ) is refuted; 0 where none is."""

    def excess(epsilon: float) -> float:
        return p_value(guesses, epsilon, delta) - significance

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, LARGEST))


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_], share: float) -> Guesses:
    """Guess that the canaries of the largest scores were included and those of the smallest were not.

    How many are guessed depends on `share` alone: a number chosen after seeing the coins would void the bound.

    Parameters
    ----------
    scores : ndarray, shape (m,)
    included : ndarray of bool, shape (m,)
        The coins.
    share : float
        Of the canaries, half on each side.
    """
    each = max(1, round(share * len(scores) / 2))
    order = np.argsort(scores)
    right = int(included[order[-each:]].sum()) + int((~included[order[:each]]).sum())
    return Guesses(len(scores), 2 * each, right)


def audit(scores: NDArray[np.float64], included: NDArray[np.bool_], delta: float, confidence: float = 0.95) -> Bound:
    """Return the best lower bound over `SHARES`, which holds with at least this confidence.

    Parameters
    ----------
    scores, included : ndarray, shape (m,)
        m is even.
    delta : float
    confidence : float
    """
    tried = [guess(scores, included, share) for share in SHARES]
    significance = (1 - confidence) / len(tried)
    bounds = [Bound(lower_bound(one, delta, significance), one) for one in tried]
    return max(bounds, key=lambda one: one.epsilon)
