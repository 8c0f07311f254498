"""Phantoms: drawn, different, conformant, and of nobody; and the test builder that wraps them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_node import phantom, pixels, selection
from dicom_node.core.settings import Population, SelectionSettings
from tests.dicomfiles import CHARACTER_SETS, radiograph

SIZE = (160, 200)


def errors_of_dciodvfy(path: Path) -> list[str]:
    program = shutil.which("dciodvfy")
    if program is None:  # every claim but this one is checked without Debian's dicom3tools
        return []
    report = subprocess.run([program, path], capture_output=True, text=True, check=False).stderr
    return [line for line in report.splitlines() if "Error" in line]


@pytest.mark.parametrize("kind", phantom.KINDS)
def test_the_same_seed_draws_the_same_chest_and_another_seed_another(kind: phantom.Kind) -> None:
    first = phantom.draw(7, kind, SIZE)
    assert first.shape == SIZE
    assert first.dtype == np.uint8
    assert np.array_equal(first, phantom.draw(7, kind, SIZE))
    assert np.abs(first.astype(int) - phantom.draw(8, kind, SIZE)).mean() > 2


@pytest.mark.parametrize("seed", range(5))
def test_lungs_are_dark_between_bright_bones_and_lesions_are_bright(seed: int) -> None:
    clear = phantom.draw(seed, "clear", SIZE).astype(float)
    rows, columns = SIZE
    across = slice(int(0.40 * rows), int(0.60 * rows))
    spine = clear[across, int(0.46 * columns) : int(0.54 * columns)].mean()
    lung = clear[across, int(0.24 * columns) : int(0.34 * columns)].mean()
    air = clear[across, :4].mean()
    assert spine > 1.8 * lung
    assert lung > 2 * air
    one_side = phantom.draw(seed, "consolidation", SIZE) - clear
    both_sides = phantom.draw(seed, "diffuse", SIZE) - clear
    halves = [part.mean() for part in np.array_split(one_side, 2, axis=1)]
    assert max(halves) > 3
    assert abs(min(halves)) < 1
    assert all(part.mean() > 1 for part in np.array_split(both_sides, 2, axis=1))


@pytest.mark.parametrize("size", [(64, 64), (700, 500), (101, 303)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    assert phantom.draw(1, "diffuse", size).shape == size


@pytest.mark.parametrize(("number", "view"), [(1, "AP"), (2, "PA"), (13, "AP")])
def test_a_phantom_study_is_conformant_eligible_and_plainly_made_up(number: int, view: Any, tmp_path: Path) -> None:
    study = phantom.Study.numbered(number, key="test")
    dataset = phantom.dataset(phantom.draw(number, "clear", (151, 203)), study=study, view=view)
    dataset.save_as(tmp_path / "phantom.dcm", enforce_file_format=True)
    assert errors_of_dciodvfy(tmp_path / "phantom.dcm") == []
    back = pydicom.dcmread(tmp_path / "phantom.dcm")
    selection.judge(back, SelectionSettings(), Population(min_age_years=1, max_age_years=5))
    assert str(back.PatientName).startswith("Phantom^")
    assert back.PatientID == f"PHANTOM-{number}"
    assert selection.age_years(back) == study.age_years
    del back.PatientAge
    assert int(selection.age_years(back) or 0) == study.age_years
    request = back.RequestAttributesSequence[0]
    assert (request.StudyInstanceUID, request.AccessionNumber) == (back.StudyInstanceUID, back.AccessionNumber)
    assert back.ViewCodeSequence[0].CodeMeaning == {"AP": "antero-posterior", "PA": "postero-anterior"}[view]


def test_uids_follow_from_the_key_and_the_number() -> None:
    picture = phantom.draw(1, "clear", SIZE)
    one, again = (phantom.dataset(picture, study=phantom.Study("a")) for _ in range(2))
    second = phantom.dataset(picture, study=phantom.Study("a"), number=2)
    other = phantom.dataset(picture, study=phantom.Study("b"))
    assert one.SOPInstanceUID == again.SOPInstanceUID
    assert one.SOPInstanceUID != second.SOPInstanceUID
    assert one.StudyInstanceUID == second.StudyInstanceUID != other.StudyInstanceUID


def test_a_wrapped_picture_is_seen_as_it_is() -> None:
    picture = phantom.draw(1, "clear", (151, 203))
    dataset = phantom.dataset(picture, study=phantom.Study("image"))
    assert np.array_equal(pixels.from_dataset(dataset).image, pixels.from_picture(picture))


@pytest.mark.parametrize("minimal", [False, True])
@pytest.mark.parametrize(("character_set", "name"), CHARACTER_SETS, ids=str)
def test_the_builder_writes_conformant_files_in_every_character_set(
    character_set: Any, name: str, minimal: bool, tmp_path: Path
) -> None:
    dataset = radiograph(
        phantom.draw(1, "clear", (64, 64)), character_set=character_set, patient_name=name, minimal=minimal
    )
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    assert str(pydicom.dcmread(tmp_path / "image.dcm").PatientName) == name
    assert errors_of_dciodvfy(tmp_path / "image.dcm") == []
    assert ("PatientAge" in dataset) is not minimal
