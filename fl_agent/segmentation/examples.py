"""Pictures with masks: phantoms, whose opacities are known, or a research site's pairs of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom_node import phantom
from dicom_node.core.errors import ConfigError
from dicom_node.training import lists

from ..research.pictures import grey

PATIENTS: Final = "patients.csv"
COLUMNS: Final = ("file", "patient")


@dataclass(frozen=True)
class Pairs:
    """Pictures and where their opacities are.

    Attributes
    ----------
    name : str
        Of the data, for the card.
    pictures : ndarray of uint8, shape (images, side, side)
        0..255, bright is dense.
    masks : ndarray of bool, shape (images, side, side)
    patients : ndarray of int, shape (images,)
        From 0 without gaps.
    """

    name: str
    pictures: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    patients: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of patients."""
        return int(self.patients.max()) + 1

    def divided(self, share: float, seed: int) -> tuple[Pairs, Pairs]:
        """Set a share of the patients aside; no patient is on both sides."""
        aside = np.zeros(self.count, dtype=bool)
        aside[np.random.default_rng(seed).permutation(self.count)[: max(1, round(share * self.count))]] = True
        return self._take(~aside[self.patients]), self._take(aside[self.patients])

    def _take(self, kept: NDArray[np.bool_]) -> Pairs:
        _, patients = np.unique(self.patients[kept], return_inverse=True)
        return Pairs(self.name, self.pictures[kept], self.masks[kept], patients.astype(np.int64))


def phantoms(count: int, side: int, seed: int = 0) -> Pairs:
    """Draw phantoms, one to a patient, of all kinds in turn."""
    kinds = phantom.KINDS
    drawn = [phantom.draw_with_opacity(seed + one, kinds[one % len(kinds)], (side, side)) for one in range(count)]
    pictures, masks = (np.stack(part) for part in zip(*drawn, strict=True))
    return Pairs("drawn phantoms; no patient's", pictures, masks, np.arange(count, dtype=np.int64))


def read_pairs(folder: Path, side: int) -> Pairs:
    """Read `folder/images` and, of the same names, `folder/masks` (above half is opaque), with `patients.csv`.

    Raises
    ------
    ConfigError
        A mask is missing or has another shape than its picture, or the list is empty (``training-data``).
    FaultyList
        The list cannot be read.
    """
    rows = [one.values for one in lists.read(folder / PATIENTS, COLUMNS, COLUMNS)]
    if not rows:
        raise ConfigError(f"{folder / PATIENTS} names no file", code="training-data")
    present = {path.name for path in (folder / "images").iterdir()}
    pictures, masks = [], []
    for row in rows:
        if row["file"] not in present or not (folder / "masks" / row["file"]).is_file():
            raise ConfigError(f"{folder} lacks a picture or mask that {PATIENTS} names", code="training-data")
        picture, mask = grey(folder / "images" / row["file"]), grey(folder / "masks" / row["file"])
        if picture.shape != mask.shape:
            raise ConfigError("a mask has another shape than its picture", code="training-data")
        pictures.append(np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)))
        masks.append(np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)) > 127)
    _, patients = np.unique([row["patient"] for row in rows], return_inverse=True)
    return Pairs("a research site's folder", np.stack(pictures), np.stack(masks), patients.astype(np.int64))
