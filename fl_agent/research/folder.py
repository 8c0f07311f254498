"""The films of a folder: the class by the folder's name, the patient by `patients.csv`; see the package's docstring."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from dicom_node.core.errors import ConfigError
from dicom_node.training import lists
from dicom_node.training.lists import Fault, FaultyList, Row
from secure_infer.card import CLASSES

from ..trainset import Films, split_patients
from .pictures import ENDINGS

PATIENTS: Final = "patients.csv"
COLUMNS: Final = ("file", "patient", "split", "age", "view")
SPLITS: Final = ("train", "test")
VIEW_POSITIONS: Final = ("", "AP", "PA")
OLDEST_YEARS: Final = 150
#: Of the patients of each class, where the list does not say who is for the test.
TEST_SHARE: Final = 0.2
#: Chooses these; no secret. A constant, so that no search can look for a kind division.
TEST_SEED: Final = 2018


@dataclass(frozen=True)
class Film:
    """One line of a folder's list.

    Attributes
    ----------
    line : int
    file : str
        Path below the folder, whose first part names the class.
    patient : str
        As the list calls the patient.
    split : str
        "train", "test", or empty where the list has no such column.
    age : float or None
        Years; None where the list does not say.
    view : str
        "AP", "PA", or empty where the list does not say.
    """

    line: int
    file: str
    patient: str
    split: str
    age: float | None
    view: str

    @property
    def label(self) -> int:
        """0 normal, 1 bacterial, 2 viral."""
        return CLASSES.index(self.file.partition("/")[0])


@dataclass(frozen=True)
class Found:
    """The films of a folder; no patient is in both parts.

    Attributes
    ----------
    train, test : Films
    by_hand : bool
        Whether the list says who is for the test.
    """

    train: Films
    test: Films
    by_hand: bool


def read_folder(folder: Path) -> Found:
    """Read a research site's films; the errors are those of `read_list`."""
    by_split: dict[str, list[Film]] = defaultdict(list)
    for film in read_list(folder):
        by_split[film.split].append(film)
    if "" in by_split:
        train, test = split_patients(_films(folder, by_split[""]), TEST_SHARE, TEST_SEED)
        return Found(train, test, by_hand=False)
    if missing := [name for name in SPLITS if name not in by_split]:
        raise ConfigError(f"{folder / PATIENTS} puts nobody into the split {missing[0]}", code="training-data")
    train, test = (_films(folder, by_split[name]) for name in SPLITS)
    return Found(train, test, by_hand=True)


def read_list(folder: Path) -> list[Film]:
    """Read a folder's list of films, by file.

    Raises
    ------
    ConfigError
        There is no such list, or it leaves files out (``training-data``).
    FaultyList
        With every fault of the list by its line; patients are never named.
    """
    present = {
        path.relative_to(folder).as_posix()
        for name in CLASSES
        for path in (folder / name).rglob("*")
        if path.is_file() and path.name.lower().endswith(ENDINGS)
    }
    rows = lists.read(folder / PATIENTS, COLUMNS, COLUMNS[:2])
    if not rows:
        raise ConfigError(f"{folder / PATIENTS} names no file", code="training-data")
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    of_patient: dict[str, tuple[str, str]] = {}
    for row in rows:
        file, patient, split, age, view = (row.values.get(column, "") for column in COLUMNS)
        kind = (file.partition("/")[0], split)
        if file not in present:
            faults.append(Fault(row.line, f"there is no such picture in {', '.join(CLASSES)}"))
        elif not patient:
            faults.append(Fault(row.line, "it names no patient"))
        elif "split" in row.values and split not in SPLITS:
            faults.append(Fault(row.line, f"split must be {' or '.join(SPLITS)}"))
        elif age and _years(age) is None:
            faults.append(Fault(row.line, f"age must be in years, 0 to {OLDEST_YEARS}, or empty"))
        elif view not in VIEW_POSITIONS:
            faults.append(Fault(row.line, "view must be AP, PA or empty"))
        elif seen.setdefault(file, row.line) != row.line:
            faults.append(Fault(row.line, f"line {seen[file]} names the same file"))
        elif of_patient.setdefault(patient, kind) != kind:
            faults.append(Fault(row.line, "this patient has another class or split in an earlier line"))
    if faults:
        raise FaultyList(faults)
    if missing := len(present) - len(seen):
        raise ConfigError(
            f"{folder / PATIENTS} leaves out {missing} of the pictures: name their patients", code="training-data"
        )
    films = [_film(row) for row in rows]
    return sorted(films, key=lambda film: film.file)


def digest(path: Path) -> str:
    """Hash a file (SHA-256); one that was not changed since is not read again."""
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _film(row: Row) -> Film:
    file, patient, split, age, view = (row.values.get(column, "") for column in COLUMNS)
    return Film(row.line, file, patient, split, _years(age), view)


def _years(text: str) -> float | None:
    try:
        years = float(text)
    except ValueError:
        return None
    return years if 0 <= years <= OLDEST_YEARS else None


def _films(folder: Path, films: Sequence[Film]) -> Films:
    _, patients = np.unique([film.patient for film in films], return_inverse=True)
    labels = np.array([film.label for film in films], dtype=np.int64)
    hashes = tuple(digest(folder / film.file) for film in films)
    return Films(tuple(film.file for film in films), hashes, labels, patients.astype(np.int64))
