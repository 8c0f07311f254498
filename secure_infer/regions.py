"""Regions of an image that have private weights of their own: the whole of it, or its quarters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shares(regions: int, grid: int) -> NDArray[np.float64]:
    """Say how much of each position of a square grid belongs to each region.

    Positions on a border are shared: of 7 rows, 3.5 are in either half.

    Returns
    -------
    ndarray of float64, shape (regions ** 2, grid, grid)
        0..1; regions row by row. Over regions they add up to 1.
    """
    ends, borders = np.arange(grid + 1.0), np.linspace(0, grid, regions + 1)
    along = np.minimum(ends[1:], borders[1:, None]) - np.maximum(ends[:-1], borders[:-1, None])
    along = np.maximum(along, 0.0)
    found: NDArray[np.float64] = np.einsum("ay,bx->abyx", along, along).reshape(-1, grid, grid)
    return found
