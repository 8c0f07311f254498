"""The films of a folder: the class by the folder's name, the patient by `patients.csv`; see the package's docstring."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dicom_node.core.errors import ConfigError
from dicom_node.training import lists
from dicom_node.training.lists import Fault, FaultyList
from secure_infer.card import CLASSES

from ..trainset import Films, split_patients
from .pictures import ENDINGS

PATIENTS: Final = "patients.csv"
COLUMNS: Final = ("file", "patient", "split")
SPLITS: Final = ("train", "test")
#: Of the patients of each class, where the list does not say who is for the test.
TEST_SHARE: Final = 0.2
#: Chooses these; no secret. A constant, so that no search can look for a kind division.
TEST_SEED: Final = 2018


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
    """Read a research site's films.

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
        file, patient, split = (row.values.get(column, "") for column in COLUMNS)
        kind = (file.partition("/")[0], split)
        if file not in present:
            faults.append(Fault(row.line, f"there is no such picture in {', '.join(CLASSES)}"))
        elif not patient:
            faults.append(Fault(row.line, "it names no patient"))
        elif "split" in row.values and split not in SPLITS:
            faults.append(Fault(row.line, f"split must be {' or '.join(SPLITS)}"))
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
    return _split(folder, [(row.values["file"], row.values["patient"], row.values.get("split", "")) for row in rows])


def _split(folder: Path, rows: list[tuple[str, str, str]]) -> Found:
    by_split: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file, patient, split in sorted(rows):
        by_split[split].append((file, patient))
    if "" in by_split:
        train, test = split_patients(_films(folder, by_split[""]), TEST_SHARE, TEST_SEED)
        return Found(train, test, by_hand=False)
    if missing := [name for name in SPLITS if name not in by_split]:
        raise ConfigError(f"{folder / PATIENTS} puts nobody into the split {missing[0]}", code="training-data")
    train, test = (_films(folder, by_split[name]) for name in SPLITS)
    return Found(train, test, by_hand=True)


def _films(folder: Path, rows: list[tuple[str, str]]) -> Films:
    _, patients = np.unique([patient for _, patient in rows], return_inverse=True)
    labels = np.array([CLASSES.index(file.partition("/")[0]) for file, _ in rows], dtype=np.int64)
    hashes = tuple(hashlib.sha256((folder / file).read_bytes()).hexdigest() for file, _ in rows)
    return Films(tuple(file for file, _ in rows), hashes, labels, patients.astype(np.int64))
