"""Chest phantoms: radiographs drawn from a seed, and a conformant DX object round any grey picture (PS3.3 A.26).

For demonstrations and tests. Nothing in a phantom comes from a person; names and numbers say that they are made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from .. import uids
from .drawing import KINDS, Kind, draw, draw_with_opacity

__all__ = ["KINDS", "Kind", "Study", "View", "dataset", "draw", "draw_with_opacity"]

View = Literal["AP", "PA"]
# SNOMED CT codes of PS3.16 CID 4010.
VIEW_CODES: dict[View, tuple[str, str]] = {
    "AP": ("399348003", "antero-posterior"),
    "PA": ("272479007", "postero-anterior"),
}
NUMERALS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


@dataclass(frozen=True)
class Study:
    """Who and what a made-up study says it is of.

    Attributes
    ----------
    key : str
        Makes the UIDs: the same key, the same study.
    patient_name, patient_id : str
        Person Name and its identifier.
    age_years : int
        Age at the study, years; PatientBirthDate agrees with it.
    accession_number : str
        The order's number.
    description : str
        StudyDescription and the requested procedure's.
    performed : datetime
        When the study took place, local time.
    """

    key: str
    patient_name: str = "Phantom^One"
    patient_id: str = "PHANTOM-1"
    age_years: int = 3
    accession_number: str = "PHANTOM-A1"
    description: str = "Chest radiograph of a phantom"
    performed: datetime = datetime(2024, 5, 17, 10, 30)

    @classmethod
    def numbered(cls, number: int, *, key: str) -> Study:
        """Make up the study of phantom patient `number` (from 1), aged 1 to 5."""
        name = NUMERALS[number - 1] if number <= len(NUMERALS) else str(number)
        return cls(
            key=f"{key}-{number}",
            patient_name=f"Phantom^{name}",
            patient_id=f"PHANTOM-{number}",
            age_years=1 + (number - 1) % 5,
            accession_number=f"PHANTOM-A{number}",
        )

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""
        return uids.derive("phantom-study", self.key)


def dataset(picture: NDArray[np.uint8], *, study: Study, number: int = 1, view: View = "AP") -> Dataset:
    """Make a DX image for presentation of a grey picture, complete by PS3.3 A.26.

    Parameters
    ----------
    picture : ndarray of uint8, shape (rows, columns)
        Bright is dense; a phantom or any picture of a chest.
    study : Study
        Whose study it joins.
    number : int
        Instance Number; also makes the SOP Instance UID.
    view : str
        ``AP`` or ``PA``.

    Returns
    -------
    Dataset
        With ``file_meta`` (Explicit VR Little Endian), ready for `save_as` or C-STORE.
    """
    image = Dataset()
    _describe_patient_and_study(image, study)
    _describe_series(image, study, view)
    _describe_image(image, study, number, view)
    rows, columns = picture.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.Rows, image.Columns = rows, columns
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.WindowCenter, image.WindowWidth = "128", "256"
    data = picture.tobytes()
    image.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _describe_patient_and_study(image: Dataset, study: Study) -> None:
    day = study.performed.strftime("%Y%m%d")
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName, image.PatientID, image.PatientSex = study.patient_name, study.patient_id, "O"
    image.PatientBirthDate = f"{study.performed.year - study.age_years}{day[4:6]}01"
    image.PatientAge = f"{study.age_years:03d}Y"
    image.StudyInstanceUID, image.StudyID = study.study_uid, study.accession_number[-16:]
    image.StudyDate, image.StudyTime = day, study.performed.strftime("%H%M%S")
    image.AccessionNumber, image.ReferringPhysicianName = study.accession_number, ""
    image.StudyDescription = study.description


def _describe_series(image: Dataset, study: Study, view: View) -> None:
    image.Modality, image.PresentationIntentType = "DX", "FOR PRESENTATION"
    image.SeriesInstanceUID = uids.derive("phantom-series", study.key)
    image.SeriesNumber, image.SeriesDescription = 1, f"Chest {view}"
    image.Manufacturer, image.ManufacturerModelName = "VeilRay", "Drawn phantom"
    image.DeviceSerialNumber, image.SoftwareVersions = "1", "1"
    image.BodyPartExamined = "CHEST"
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = study.accession_number, study.accession_number
    request.RequestedProcedureDescription = study.description
    request.StudyInstanceUID, request.AccessionNumber = study.study_uid, study.accession_number
    image.RequestAttributesSequence = [request]


def _describe_image(image: Dataset, study: Study, number: int, view: View) -> None:
    image.SOPClassUID = DigitalXRayImageStorageForPresentation
    image.SOPInstanceUID = uids.derive("phantom-image", study.key, str(number))
    image.InstanceNumber, image.ImageType = number, ["DERIVED", "PRIMARY"]
    image.ContentDate = image.AcquisitionDate = image.StudyDate
    image.ContentTime = image.AcquisitionTime = image.StudyTime
    image.PatientOrientation, image.ImageLaterality = ["L", "F"], "U"
    image.AnatomicRegionSequence = [_code("816094009", "Chest")]
    image.ViewPosition = view
    code = _code(*VIEW_CODES[view])
    code.ViewModifierCodeSequence = []
    image.ViewCodeSequence = [code]
    image.PositionerType, image.DetectorType, image.DetectorID = "NONE", None, None
    # Type 1, and unknown for a picture: 1280 columns of 0.2 mm are 26 cm, a small child's chest.
    image.ImagerPixelSpacing = ["0.2", "0.2"]
    image.PixelIntensityRelationship, image.PixelIntensityRelationshipSign = "LOG", 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", "1", "US"
    image.PresentationLUTShape, image.BurnedInAnnotation = "IDENTITY", "NO"
    image.LossyImageCompression, image.AcquisitionContextSequence = "00", []


def _code(value: str, meaning: str) -> Dataset:
    """Make a code of SNOMED CT (PS3.3 section 8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item
