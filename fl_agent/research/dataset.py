"""The data set that a training is given: `kermany224` with its manifest, or a research site's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import texts
from ..trainset import Films, read_manifest
from .about import FILE, KERMANY, About, read_about
from .folder import TEST_SEED, TEST_SHARE, read_folder

PUBLIC: Final = "kermany224"


@dataclass(frozen=True)
class DataSet:
    """Films for training and test, and what the card says of them.

    Attributes
    ----------
    train, test : Films
        No patient is in both.
    about : About
    how_split : str
        How the test patients were chosen.
    calibration, figures : str
        Sentences on both.
    not_covered : str or None
        What epsilon leaves out, where that is not what the network says.
    """

    train: Films
    test: Films
    about: About
    how_split: str
    calibration: str
    figures: str
    not_covered: str | None


def images_folder(data: Path) -> Path:
    """Return the folder that the paths of films start from."""
    return data / PUBLIC if (data / PUBLIC).is_dir() else data


def open_data_set(data: Path) -> DataSet:
    """Read what a folder holds.

    Raises
    ------
    ConfigError, FaultyList
        It holds neither `kermany224` nor a research site's films; see `read_folder` and `read_about`.
    """
    folder = images_folder(data)
    if not (data / FILE).is_file():
        train, test = read_manifest(folder, "train"), read_manifest(folder, "test")
        return DataSet(train, test, KERMANY, texts.TEST_OWN, texts.CALIBRATION, texts.FIGURES, None)
    found = read_folder(folder)
    how = texts.TEST_LISTED if found.by_hand else texts.test_drawn(TEST_SHARE, TEST_SEED)
    return DataSet(
        found.train,
        found.test,
        read_about(folder),
        how,
        texts.CALIBRATION_ELSEWHERE,
        texts.FIGURES_ELSEWHERE,
        texts.NOT_COVERED_ELSEWHERE,
    )
