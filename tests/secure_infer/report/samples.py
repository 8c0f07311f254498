"""Source images and reports that the tests of this folder and of the viewers share."""

from __future__ import annotations

import datetime
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
)

from dicom_node import uids
from secure_infer import report

# Landscape, as children's chests are taken: viewers fill their width with it and have no margin for labels.
ROWS, COLUMNS = 420, 540

#: Specific Character Set and a person's name that needs it.
NAMES = {
    "ISO_IR 100": "Müller^Jürgen^^Dr.",
    "ISO_IR 101": "Dvořák^Łukasz",
    "ISO_IR 109": "Ġużeppi^Ħarry",
    "ISO_IR 110": "Bērziņš^Ģirts",
    "ISO_IR 144": "Люкceмбypг^Иван",
    "ISO_IR 127": "قباني^لنزار",
    "ISO_IR 126": "Διονυσιος^Ελένη",
    "ISO_IR 138": "שרון^דבורה",
    "ISO_IR 148": "Çavuşoğlu^İbrahim",
    "ISO_IR 192": "Wang^XiaoDong=王^小東=ワン^シャオドン",
    "GB18030": "Wang^XiaoDong=王^小东",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "ISO_IR 166": "ศักดิ์^สมชาย",
}


@dataclass(frozen=True)
class Answer:
    """The answer of one image, as `report.Answer` asks for."""

    answer: Literal["present", "absent", "undetermined"]
    pneumonia: float
    bacterial: float | None = None
    viral: float | None = None


ANSWERS = {
    "present": Answer("present", 0.973, 0.63, 0.343),
    "absent": Answer("absent", 0.0421, 0.02, 0.022),
    "undetermined": Answer("undetermined", 0.45, 0.2, 0.25),
}
ALGORITHM = report.Algorithm(
    name="chest-pneumonia",
    version="1.2.0",
    weights_sha256="5f" * 32,
    engine="dealt 2PC",
    operating_point="absent below 0.20, present from 0.60",
    epsilon=3.0,
    delta=1e-4,
)
DEVICE = report.DeviceObserver("Children's Hospital, X-ray")
CREATED = datetime.datetime(2026, 3, 4, 5, 6, 7)


def encoded_name(character_set: str, name: str) -> bytes:
    """Encode a name as an archive with that Specific Character Set holds it."""
    return pydicom.valuerep.PersonName(name).encode(convert_encodings(character_set.split("\\")))


def source(
    character_set: str = "ISO_IR 192", *, full: bool = True, name: str = "Example^Patient", key: str = "1"
) -> Dataset:
    """A chest radiograph as read from a file: DX with every attribute of interest, or CR with only the mandatory ones.

    Parameters
    ----------
    key : str
        Images of one key's first letter are of one study.
    """
    dataset = Dataset()
    dataset.SpecificCharacterSet = character_set.split("\\") if "\\" in character_set else character_set
    dataset.PatientName = encoded_name(character_set, name)
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation if full else ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = uids.derive("test image", key)
    dataset.SeriesInstanceUID = uids.derive("test series", key)
    dataset.StudyInstanceUID = uids.derive("test study", key[0])
    dataset.Modality = "DX" if full else "CR"
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    if full:
        _describe(dataset)
    else:
        # Type 2 attributes that some archives leave out altogether are missing here.
        dataset.PatientID = "P1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = chest().tobytes()
    return pydicom.dcmread(io.BytesIO(part10(dataset)))


def _describe(dataset: Dataset) -> None:
    dataset.PatientID = "HOSP-00042"
    dataset.IssuerOfPatientID = "HOSP"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "20220101", "F", "004Y"
    dataset.PatientWeight = "16.5"
    dataset.PatientComments = "private remark"
    dataset.StudyDate, dataset.StudyTime = "20260304", "040506.5"
    dataset.SeriesDate, dataset.SeriesTime = "20260304", "0405"
    dataset.AccessionNumber, dataset.StudyID = "A2026-17", "S17"
    dataset.ReferringPhysicianName = "Referrer^Rita"
    dataset.StudyDescription = "Chest PA"
    dataset.SeriesDescription = "Chest PA"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.ViewPosition = "PA"
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.ImagerPixelSpacing = [0.2, 0.2]
    procedure = _code("36643-5", "LN", "XR Chest 2 Views")
    dataset.ProcedureCodeSequence = [procedure]
    request = Dataset()
    request.RequestedProcedureID, request.AccessionNumber = "RP1", "A2026-17"
    request.StudyInstanceUID = dataset.StudyInstanceUID
    request.RequestedProcedureDescription = "Chest radiograph"
    dataset.RequestAttributesSequence = [request]
    dataset.add_new(0x00090010, "LO", "SOME VENDOR")
    dataset.add_new(0x00091001, "LO", "private value")


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def part10(dataset: Dataset) -> bytes:
    """Write a dataset as a DICOM file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def chest() -> NDArray[np.uint16]:
    """Two dark lungs, the right one with a dense area, 12 bit."""
    row, column = np.indices((ROWS, COLUMNS)) / np.array([ROWS, COLUMNS])[:, None, None]
    picture = np.full((ROWS, COLUMNS), 2600.0)
    for centre in (0.32, 0.68):
        picture[((row - 0.5) / 0.36) ** 2 + ((column - centre) / 0.14) ** 2 < 1] = 700
    picture += 1500 * np.exp(-(((row - 0.64) / 0.10) ** 2 + ((column - 0.29) / 0.07) ** 2))
    return picture.clip(0, 4095).astype("<u2")


def evidence() -> NDArray[np.float64]:
    """Evidence map with its strength where `chest` has the dense area."""
    cells = np.full((7, 7), -0.2)
    cells[4, 1:3] = 1.0, 0.9
    cells[3, 1:3] = 0.7, 0.6
    return cells


def analysed(dataset: Dataset, answer: Answer) -> report.AnalysedImage:
    positive = answer.answer == "present"
    region = report.region_from_evidence(evidence(), ROWS, COLUMNS) if positive else report.frame(ROWS, COLUMNS)
    return report.AnalysedImage(dataset, answer, region)


def structured(images: Sequence[report.AnalysedImage], seed: str = "seed", **options: object) -> Dataset:
    return report.structured_report(images, ALGORITHM, DEVICE, created=CREATED, seed=seed, **options)


def text(images: Sequence[report.AnalysedImage], seed: str = "seed", **options: object) -> Dataset:
    return report.text_report(images, ALGORITHM, DEVICE, created=CREATED, seed=seed, **options)
