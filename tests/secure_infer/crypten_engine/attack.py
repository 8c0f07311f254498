"""The owner of the weights looks for the hospital's masks: exhaustive search over the unknown bits of a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

#: Elements that a guess is judged by, and the largest fixed-point value that an image can hold: a wrong guess passes
#: with a probability of 2^-344.
JUDGED = 8
LARGEST = 1 << 20
UNKNOWN_BITS = 16


def search(
    opened: np.ndarray, masks: Callable[[int, int], np.ndarray], candidates: Iterable[int]
) -> tuple[int, np.ndarray] | None:
    """Find the seed under which an opening shows an image.

    Parameters
    ----------
    opened : ndarray of int64
        Image less masks.
    masks : callable
        Gives the first masks that follow from a seed: seed, how many.

    Returns
    -------
    tuple of int and ndarray of int64, or None
        The seed, and the image in fixed point.
    """
    flat = opened.reshape(-1)
    for seed in candidates:
        if (np.abs(flat[:JUDGED] + masks(seed, JUDGED)) < LARGEST).all():
            return seed, (flat + masks(seed, flat.size)).reshape(opened.shape)
    return None


def guesses(known: int) -> Iterable[int]:
    """Every seed that agrees with `known` except for its `UNKNOWN_BITS` lowest bits."""
    base = known >> UNKNOWN_BITS << UNKNOWN_BITS
    return (base + low for low in range(1 << UNKNOWN_BITS))
