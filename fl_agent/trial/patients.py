"""Patients of a trial hospital: drawn or public films as DX objects (PS3.3 A.26), labels and agreements as lists."""

from __future__ import annotations

import csv
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom_node import phantom
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from dicom_node.training import consent, labels, subjects
from dicom_node.training.diagnosis import Diagnosis
from dicom_node.training.site_key import open_key

from ..trainset import read_manifest

#: What a drawn opacity stands for here; a clear one is normal.
SHOWN: Final = {
    "clear": Diagnosis.NORMAL,
    "consolidation": Diagnosis.BACTERIAL,
    "diffuse": Diagnosis.VIRAL,
}
#: In the order of kermany224's numbers.
CLASSES: Final = (Diagnosis.NORMAL, Diagnosis.BACTERIAL, Diagnosis.VIRAL)
#: Rows and columns of a drawing: more than the trunk looks at.
SIZE: Final = (256, 320)
ACTOR: Final = "fl-agent consortium furnish"


@dataclass(frozen=True)
class Patient:
    """One image, shape (rows, columns), and what it shows."""

    picture: NDArray[np.uint8]
    label: Diagnosis


def drawn(hospitals: int, each: int) -> Iterator[list[Patient]]:
    """Draw so many patients for each hospital, no two alike; figures on them say nothing about radiographs."""
    for first in range(0, hospitals * each, each):
        kinds = zip(range(first, first + each), itertools.cycle(phantom.KINDS))
        yield [Patient(phantom.draw(seed, kind, SIZE), SHOWN[kind]) for seed, kind in kinds]


def public(folder: Path, hospitals: int, each: int) -> Iterator[list[Patient]]:
    """Take so many patients of kermany224's training split for each hospital, one image of each.

    Raises
    ------
    ConfigError
        The folder does not hold the data set, or not so many patients (``training-data``).
    """
    films = read_manifest(folder, "train")
    if films.count < hospitals * each:
        most = films.count // hospitals
        raise ConfigError(f"{hospitals} hospitals can share {most} patients each, not {each}", code="training-data")
    _, firsts = np.unique(films.patients, return_index=True)
    for chosen in np.array_split(np.random.default_rng(0).permutation(firsts)[: hospitals * each], hospitals):
        yield [Patient(_grey(folder / films.files[one]), CLASSES[films.labels[one]]) for one in chosen]


def _grey(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"), dtype=np.uint8)


def admit(folder: Path, settings: Settings, name: str, patients: Sequence[Patient]) -> None:
    """Put patients into a site's records as if their images had come, all labelled and all of one mind.

    Parameters
    ----------
    folder : Path
        Takes the lists, as `dicom-node consent import` and `dicom-node labels import` read them.
    settings : Settings
    name : str
        The hospital's; makes the UIDs.
    patients : sequence of Patient
    """
    studies = [phantom.Study.numbered(number, key=f"trial-{name}") for number in range(1, len(patients) + 1)]
    _write(folder / "agreed.csv", ("PatientID", "Consent"), [(one.patient_id, "yes") for one in studies])
    said = [(study.accession_number, one.label.value) for study, one in zip(studies, patients, strict=True)]
    _write(folder / "labels.csv", ("AccessionNumber", "Label"), said)
    database = Database(settings.database_url)
    try:
        database.migrate()
        store = Store(settings, database)
        for study, one in zip(studies, patients, strict=True):
            content = io.BytesIO()
            phantom.dataset(one.picture, study=study).save_as(content, enforce_file_format=True)
            store.add_file(content.getvalue(), ACTOR)
        names = subjects.Pseudonyms(open_key(settings.training_key, database), settings.training.issuer)
        subjects.refresh(database, store, names, lambda done, total: None)
        changes, lines = consent.read_list(folder / "agreed.csv", names), labels.read_list(folder / "labels.csv", names)
        with database.write() as connection:
            consent.record(connection, changes, ACTOR, time.time())
            labels.record_list(connection, lines, ACTOR, time.time(), skip_unknown=False, replace=False)
    finally:
        database.close()


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
