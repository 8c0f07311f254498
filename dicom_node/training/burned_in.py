"""Whether a line of print stands in the pixels themselves (PS3.15 E.3.1, Clean Pixel Data Option: here, refuse).

Print differs from anatomy by strokes a few pixels wide that jump by most of the picture's range, and by standing in
lines. Found are lines of at least three characters, printed level or upright, bright or dark. A single letter, as side
markers are, is no line. Not found are handwriting, faint print, and print smaller than `SMALLEST` pixels: a site
that burns such things in must not contribute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SMALLEST = 5
#: Share of the picture's range by which a stroke stands out from what is round it.
CONTRAST = 0.35
#: Longest side of a character, as a share of the picture's height.
LARGEST = 1 / 12
CHARACTERS = 3


@dataclass(frozen=True)
class _Glyph:
    """Bounding box of one connected stroke, pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top


def has_print(grey: NDArray[np.float32]) -> bool:
    """Tell whether a line of print stands in a picture.

    Parameters
    ----------
    grey : ndarray of float32, shape (rows, columns)
        Any linear grey; its range need not be known.
    """
    low, high = float(grey.min()), float(grey.max())
    # Print may be the brightest by far, or lie inside the picture's range while single hot pixels stretch it.
    inner_low, inner_high = (float(bound) for bound in np.percentile(grey, (0.1, 99.9)))
    ranges = [(low, high)] + ([(inner_low, inner_high)] if inner_high - inner_low < 0.7 * (high - low) else [])
    return any(_shows_print((grey.clip(*bounds) - bounds[0]) / np.ptp(bounds)) for bounds in ranges if np.ptp(bounds))


def _shows_print(scaled: NDArray[np.float32]) -> bool:
    reach = int(np.clip(min(scaled.shape) // 50, 5, 31)) | 1
    bright = scaled - ndimage.grey_opening(scaled, size=(reach, reach))
    dark = ndimage.grey_closing(scaled, size=(reach, reach)) - scaled
    return any(
        _has_line(_glyphs(mask if level else mask.T))
        for mask in (bright > CONTRAST, dark > CONTRAST)
        for level in (True, False)
    )


def _glyphs(mask: NDArray[np.bool_]) -> list[_Glyph]:
    labelled, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    largest = max(SMALLEST, mask.shape[0] * LARGEST)
    found = []
    for box in ndimage.find_objects(labelled):
        rows, columns = box
        glyph = _Glyph(rows.start, rows.stop, columns.start, columns.stop)
        if SMALLEST <= glyph.height <= largest and glyph.right - glyph.left <= 2 * glyph.height:
            found.append(glyph)
    return sorted(found, key=lambda glyph: (glyph.left, glyph.top))


def _has_line(glyphs: list[_Glyph]) -> bool:
    """Tell whether enough characters follow each other on one base line."""
    length = [1] * len(glyphs)
    for number, glyph in enumerate(glyphs):
        for earlier in range(number - 1, -1, -1):
            before = glyphs[earlier]
            if glyph.left - before.left > 4 * glyph.height:
                break  # sorted by their left side: nothing further back is near
            if _follows(before, glyph):
                length[number] = max(length[number], length[earlier] + 1)
        if length[number] >= CHARACTERS:
            return True
    return False


def _follows(before: _Glyph, glyph: _Glyph) -> bool:
    taller, smaller = max(before.height, glyph.height), min(before.height, glyph.height)
    same_line = abs(before.bottom - glyph.bottom) <= 0.35 * taller and taller <= 1.7 * smaller
    gap = glyph.left - before.right
    return same_line and -1 <= gap <= 1.2 * taller
