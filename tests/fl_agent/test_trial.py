"""The patients of a trial: public films, each child at one hospital, or a clear word that there are not so many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import ConfigError
from fl_agent.trainset import read_manifest
from fl_agent.trial import patients
from tests.fl_agent.small_dataset import picture, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "kermany224", train=20, test=2)
    return tmp_path / "kermany224"


def test_each_public_patient_is_at_one_hospital_with_the_label_of_its_film(folder: Path) -> None:
    hospitals = list(patients.public(folder, 2, 8))
    assert [len(one) for one in hospitals] == [8, 8]
    films = read_manifest(folder, "train")
    known = {picture(folder / file).tobytes(): number for number, file in enumerate(films.files)}
    taken = [known[one.picture.tobytes()] for hospital in hospitals for one in hospital]
    assert len(np.unique(films.patients[taken])) == 16
    given = [one.label for hospital in hospitals for one in hospital]
    assert given == [patients.CLASSES[films.labels[number]] for number in taken]


def test_more_patients_than_there_are_are_refused_with_the_most_that_works(folder: Path) -> None:
    most = read_manifest(folder, "train").count // 3
    assert len(list(patients.public(folder, 3, most))) == 3
    with pytest.raises(ConfigError, match=f"3 hospitals can share {most} patients each, not {most + 1}"):
        list(patients.public(folder, 3, most + 1))
