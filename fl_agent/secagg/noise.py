"""Distributed noise: the discrete Gaussian, drawn exactly (Canonne, Kamath, Steinke 2020, arXiv 2004.00010).

With it comes rounding whose effect on the sensitivity is exact (Kairouz, Liu, Steinke 2021, arXiv 2102.06387). Each
hospital adds its own draw before masking; `accounting` says what the sum of several draws is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..randomness import SecureSource
from .header import Header
from .masks import Words

Integers = NDArray[np.int64]

#: Draws at a time.
BATCH: Final = 1 << 18
#: exp in binary64 is wrong by less than this; a comparison closer than this is decided by exact arithmetic.
MARGIN: Final = 2.0**-40
#: Probability allowed to one attempt at conditional rounding to fail, e^(-1/2) as in the paper.
BETA: Final = math.exp(-0.5)
ATTEMPTS: Final = 64


def discrete_gaussian(variance: int, count: int, source: SecureSource) -> Integers:
    """Draw from N_Z(0, variance): probability proportional to exp(-z^2 / (2 variance)) on the integers.

    Algorithm 3 of the paper, exact: no probability is approximated (`_coins`).

    Parameters
    ----------
    variance : int
        The parameter σ^2, from 1 to 2^40; the distribution's own variance is at most that.
    count : int
    source : SecureSource

    Returns
    -------
    ndarray of int64, shape (count,)
    """
    scale = math.isqrt(variance) + 1
    below = 2 * variance * scale * scale
    drawn = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        found = _discrete_laplace(scale, min(BATCH, 2 * (count - done) + 16), source)
        # γ = (|y| - σ²/t)² / (2σ²) = (|y|·t - σ²)² / (2σ²t²); the numerator's root is exact in 64 bits and in binary64.
        root = np.abs(found) * scale - variance
        gamma = root.astype(np.float64) ** 2 / below
        kept = found[_coins(gamma, partial(_squared, root, below), source)][: count - done]
        drawn[done : done + len(kept)] = kept
        done += len(kept)
    return drawn


def _squared(root: Integers, below: int, place: int) -> Fraction:
    return Fraction(int(root[place]) ** 2, below)


def _discrete_laplace(scale: int, count: int, source: SecureSource) -> Integers:
    """Draw up to `count` integers with probability proportional to exp(-|x| / scale) (Algorithm 2)."""
    low = offered = source.below(scale, count)
    low = low[_coins(low / scale, lambda place: Fraction(int(offered[place]), scale), source)]
    high = np.zeros(len(low), dtype=np.int64)
    going = np.arange(len(low))
    while len(going):
        going = going[_coins(np.ones(len(going)), lambda _: Fraction(1), source)]
        high[going] += 1
    found = low + scale * high
    negative = source.below(2, len(found)) == 1
    kept = ~(negative & (found == 0))  # zero has one sign, or it would be drawn twice as often
    drawn: Integers = np.where(negative, -found, found)[kept]
    return drawn


def _coins(gamma: NDArray[np.float64], exact: Callable[[int], Fraction], source: SecureSource) -> NDArray[np.bool_]:
    """Flip coins that fall on 1 with probability exp(-γ), exactly.

    A coin compares a uniform number, of which more and more bits are drawn, with exp(-γ). 64 bits and binary64 decide
    all but one in 2^39; those are decided by `_decide`.

    Parameters
    ----------
    gamma : ndarray of float64
        At least 0, within a few ulp.
    exact : callable
        γ at a place.
    source : SecureSource
    """
    words = source.words(len(gamma))
    difference = words.astype(np.float64) * 2.0**-64 - np.exp(-gamma)
    coins: NDArray[np.bool_] = difference < 0
    for place in np.flatnonzero(np.abs(difference) < MARGIN):
        coins[place] = _decide(int(words[place]), exact(int(place)), source)
    return coins


def _decide(prefix: int, gamma: Fraction, source: SecureSource) -> bool:
    """Tell whether the uniform number that begins with these 64 bits is below exp(-γ)."""
    bits, digits = 64, 40
    while True:
        with localcontext() as context:
            context.prec = digits
            value = (-(Decimal(gamma.numerator) / Decimal(gamma.denominator))).exp()
        # Decimal rounds quotient and exp correctly: the error is below γ e^-γ + 1 units of the last of `digits` places.
        near, error = Fraction(value), Fraction(1, 10 ** (digits - 2))
        if Fraction(prefix + 1, 1 << bits) <= near - error:
            return True
        if Fraction(prefix, 1 << bits) >= near + error:
            return False
        prefix, bits, digits = prefix << 64 | int(source.words(1)[0]), bits + 64, digits + 20


def add_noise(header: Header, words: Words) -> None:
    """Add this site's share of the noise that the header states, in place, mod 2^32."""
    source = SecureSource()
    start = 0
    for block in header.blocks:
        if block.variance:
            for place in range(start, start + block.length, BATCH):
                part = words[place : min(place + BATCH, start + block.length)]
                part += discrete_gaussian(block.variance, len(part), source).astype(np.uint32)
        start += block.length


def conditional_limit(norm: float, dimension: int) -> int:
    """Bound the squared norm of a vector after conditional rounding (Kairouz et al. 2021, Theorem 1).

    Parameters
    ----------
    norm : float
        Largest Euclidean norm before rounding, in steps.
    dimension : int

    Returns
    -------
    int
        In steps squared; never above that of `nearest_limit`.
    """
    root = math.sqrt(dimension)
    likely = norm**2 + dimension / 4 + math.sqrt(2 * math.log(1 / BETA)) * (norm + root / 2)
    return math.floor(min(likely, (norm + root) ** 2))


def nearest_limit(norm: float, dimension: int) -> int:
    """Bound how far, squared, one patient moves a SUM that is rounded once, to the nearest, in steps squared.

    Both roundings err by at most half a step per coordinate, so the distance grows by at most the root of `dimension`.
    The sum itself is assumed exact; `round_rows` needs no such assumption.
    """
    return math.ceil((norm + math.sqrt(dimension)) ** 2)


def rows_limit(norm: float, dimension: int) -> int:
    """Bound the squared norm of ONE vector that is rounded to the nearest, in steps squared: each part errs by half."""
    return math.floor((norm + math.sqrt(dimension) / 2) ** 2)


def nearest_rows(rows: NDArray[np.floating[Any]], norm: float, step: float) -> Integers:
    """Clip each patient's vector and round it to the nearest integers, whose norm is checked exactly.

    As private as `round_rows`, and without its 64 random bits for each number. It is biased by up to half a step, so
    it is for fine steps, where `rows_limit` is as good as the square of the norm, too.

    Parameters
    ----------
    rows : ndarray of float, shape (patients, dimension)
        One that is not finite becomes zero.
    norm, step : float
        As for `round_rows`; a norm has at most 2^28 steps.

    Returns
    -------
    ndarray of int64, shape (patients, dimension)
        In steps; squared norm at most `rows_limit`.
    """
    scaled = rows.astype(np.float64)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled[~np.isfinite(length[:, 0])] = 0.0
    scaled *= np.minimum(1.0, norm / np.maximum(np.nan_to_num(length), 1e-300)) / step
    rounded: Integers = np.rint(scaled).astype(np.int64)
    # The claim rests on this comparison of integers and on no property of the arithmetic above.
    rounded[np.einsum("ij,ij->i", rounded, rounded) > rows_limit(norm / step, rows.shape[1])] = 0
    return rounded


def round_rows(rows: NDArray[np.floating[Any]], norm: float, step: float, source: SecureSource) -> Integers:
    """Clip each patient's vector and round it at random, unbiased, to integers whose norm is checked exactly.

    What is summed afterwards are integers: no rounding error of a floating-point sum adds to the sensitivity, which is
    `conditional_limit` whatever this function's floating-point arithmetic does.

    Parameters
    ----------
    rows : ndarray of float, shape (patients, dimension)
    norm : float
        Largest Euclidean norm of a row; longer ones are shortened to it.
    step : float
    source : SecureSource

    Returns
    -------
    ndarray of int64, shape (patients, dimension)
        In steps.
    """
    scaled = rows.astype(np.float64)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled *= np.minimum(1.0, norm / np.maximum(length, 1e-300)) / step
    limit = conditional_limit(norm / step, rows.shape[1])
    # Towards zero is what remains where chance fails; it makes no coordinate longer.
    rounded: Integers = np.trunc(scaled).astype(np.int64)
    open_rows = np.arange(len(rows))
    for _ in range(ATTEMPTS):
        if not len(open_rows):
            break
        floor = np.floor(scaled[open_rows])
        chance = source.uniform(floor.size).reshape(floor.shape)
        tried = (floor + (chance < scaled[open_rows] - floor)).astype(np.int64)
        fits = (tried**2).sum(1) <= limit
        rounded[open_rows[fits]] = tried[fits]
        open_rows = open_rows[~fits]
    too_long = (rounded**2).sum(1) > limit
    rounded[too_long] = 0
    return rounded
