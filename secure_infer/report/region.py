"""Regions of an image as closed polylines, for the SCOORD of a measurement (PS3.3 C.18.6, PS3.16 TID 320)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Margin of the frame round the analysed area, a fraction of each side. Viewers write a measurement's label at the
#: outline, and at the very border of the image it is clipped.
FRAME_MARGIN = 0.07

#: A cell belongs to the evidence when it holds at least this share of the strongest cell's.
EVIDENCE_SHARE = 0.5


@dataclass(frozen=True)
class Region:
    """A closed outline in an image.

    Parameters
    ----------
    polyline : tuple of (column, row)
        Vertices in pixels of the source image, the top left corner of the top left pixel being (0, 0); the last
        vertex repeats the first.
    kind : {"evidence", "analysed area"}
        Whether the outline encloses what speaks for pneumonia, or merely what was looked at.

    Raises
    ------
    ValueError
        If the outline is open, has fewer than three corners, or has a negative or infinite coordinate.
    """

    polyline: tuple[tuple[float, float], ...]
    kind: Literal["evidence", "analysed area"]

    def __post_init__(self) -> None:
        if len(self.polyline) < 4 or self.polyline[0] != self.polyline[-1]:
            raise ValueError("a region is a closed polyline of at least three corners")
        if not all(math.isfinite(value) and value >= 0 for point in self.polyline for value in point):
            raise ValueError("a region's coordinates are finite and not negative")

    @classmethod
    def box(
        cls, left: float, top: float, right: float, bottom: float, kind: Literal["evidence", "analysed area"]
    ) -> Region:
        """Make the rectangle between two columns and two rows, clockwise from its top left corner."""
        corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
        return cls(corners, kind)

    def fits(self, rows: int, columns: int) -> bool:
        """Say whether the whole outline lies inside an image of `rows` by `columns` pixels."""
        return all(column <= columns and row <= rows for column, row in self.polyline)


def frame(rows: int, columns: int) -> Region:
    """Outline the analysed area: the whole image less a margin of 7 % on each side.

    Parameters
    ----------
    rows, columns : int
        Size of the source image in pixels.

    Returns
    -------
    Region
        Of kind "analysed area".
    """
    return Region.box(*_inside(0, 0, columns, rows, rows, columns), kind="analysed area")


def region_from_evidence(evidence: NDArray[np.floating], rows: int, columns: int) -> Region:
    """Enclose the cells of an evidence map that speak for pneumonia.

    The network sees the image squashed to a square, so cell (i, j) of the map covers the same fraction of the image's
    rows and columns. The box encloses *all* strong cells: an outline of the strongest spot alone would tell the
    reader of a bilateral pneumonia that one lung is clear.

    Parameters
    ----------
    evidence : ndarray of shape (cells down, cells across), usually (7, 7)
        Contribution of each position to the pneumonia logit; positive speaks for pneumonia.
    rows, columns : int
        Size of the source image in pixels.

    Returns
    -------
    Region
        Of kind "evidence"; the frame of the analysed area when no cell is positive.

    Raises
    ------
    ValueError
        If `evidence` is not a finite two-dimensional map.
    """
    cells = np.asarray(evidence, dtype=np.float64)
    if cells.ndim != 2 or not cells.size or not np.isfinite(cells).all():
        raise ValueError("evidence is a finite two-dimensional map")
    strongest = float(cells.max())
    if strongest <= 0:
        return frame(rows, columns)
    down, across = np.nonzero(cells >= EVIDENCE_SHARE * strongest)
    height, width = rows / cells.shape[0], columns / cells.shape[1]
    box = (across.min() * width, down.min() * height, (across.max() + 1) * width, (down.max() + 1) * height)
    return Region.box(*_inside(*box, rows, columns), kind="evidence")


def _inside(
    left: float, top: float, right: float, bottom: float, rows: int, columns: int
) -> tuple[float, float, float, float]:
    """Clip a box to the frame, in whole pixels: GraphicData is single precision (FL), which would blur fractions."""
    x, y = FRAME_MARGIN * columns, FRAME_MARGIN * rows
    clipped = (max(left, x), max(top, y), min(right, columns - x), min(bottom, rows - y))
    left, top, right, bottom = (float(round(value)) for value in clipped)
    return left, top, right, bottom
