"""Our reports through a real Orthanc: stored over DICOMweb and by C-STORE's REST cousin, read back unchanged."""

from __future__ import annotations

import io

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset

from secure_infer import report
from tests.secure_infer.report import samples
from tests.system.orthanc_server import OrthancServer

BOUNDARY = "veilray-test"


@pytest.mark.parametrize("character_set", ["ISO_IR 100", "\\ISO 2022 IR 87", "GB18030"])
@pytest.mark.parametrize("write", [samples.structured, samples.text], ids=["data", "text"])
def test_a_report_stowed_in_orthanc_comes_back_over_wado_as_it_was(
    orthanc: OrthancServer, character_set: str, write: object
) -> None:
    image = samples.source(
        character_set, name=samples.NAMES[character_set], key=f"{character_set[-2]}{len(character_set)}"
    )
    orthanc.upload(samples.part10(image))
    analysed = [samples.analysed(image, samples.ANSWERS["present"])]
    sent = write(analysed, seed=f"stow {character_set}")
    _stow(orthanc, report.encode(sent))

    series = f"{orthanc.url}/dicom-web/studies/{sent.StudyInstanceUID}/series/{sent.SeriesInstanceUID}"
    (listed,) = httpx.get(f"{series}/instances", headers={"Accept": "application/dicom+json"}).raise_for_status().json()
    assert listed["00080018"]["Value"] == [sent.SOPInstanceUID]
    found = _retrieve(f"{series}/instances/{sent.SOPInstanceUID}")
    assert str(found.PatientName) == samples.NAMES[character_set]
    assert found == pydicom.dcmread(io.BytesIO(report.encode(sent)))

    (study,) = (
        httpx.get(f"{orthanc.url}/dicom-web/studies", params={"StudyInstanceUID": sent.StudyInstanceUID})
        .raise_for_status()
        .json()
    )
    assert "SR" in study["00080061"]["Value"]
    assert study["00100010"]["Value"] == [_groups(samples.NAMES[character_set])]


def _groups(name: str) -> dict[str, str]:
    """A name as DICOM JSON holds it (PS3.18 F.2.2)."""
    return dict(zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False))


def _stow(orthanc: OrthancServer, file: bytes) -> None:
    body = (
        f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}
    answer = httpx.post(f"{orthanc.url}/dicom-web/studies", content=body, headers=headers).raise_for_status()
    assert not answer.json().get("00081198", {}).get("Value"), "Failed SOP Sequence"


def _retrieve(url: str) -> Dataset:
    answer = httpx.get(url, headers={"Accept": 'multipart/related; type="application/dicom"'}).raise_for_status()
    return pydicom.dcmread(io.BytesIO(answer.content.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--")[0]))
