"""What the structured and the text report share (PS3.3 A.35, C.17.1 to C.17.3)."""

from __future__ import annotations

import datetime
import io
import logging
from collections.abc import Sequence

import highdicom
import pydicom
from highdicom import sr
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicom_node import uids

from . import codes
from .inputs import Algorithm, AnalysedImage, DeviceObserver, Predecessor
from .source import UTF8

# highdicom logs the UIDs of its sources at level INFO; identifiers stay out of logs.
logging.getLogger("highdicom").setLevel(logging.WARNING)

_CONTAINER = sr.ValueTypeValues.CONTAINER.value
_IMPLEMENTATION_CLASS_UID = uids.derive("implementation class", "VeilRay")
# What a normalised header says of the image itself; all else is of the patient and the study.
_OF_THE_IMAGE = {"SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "RequestAttributesSequence"}


def observer(device: DeviceObserver) -> sr.ObserverContext:
    """Identify the device that observes (TID 1002 and 1004)."""
    attributes = sr.DeviceObserverIdentifyingAttributes(
        uid=device.uid, name=device.name, manufacturer_name=device.manufacturer, model_name=device.model
    )
    return sr.ObserverContext(observer_type=codes.DEVICE, observer_identifying_attributes=attributes)


def procedures(header: pydicom.Dataset) -> list[Code]:
    """List the procedures reported on: the source's codes, or else a radiograph."""
    items = header.get("ProcedureCodeSequence", [])
    return [Code(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning) for item in items] or [codes.X_RAY]


def separate(item: pydicom.Dataset) -> None:
    """Mark every container's content as separate items, in place.

    highdicom writes CONTINUOUS, and for that OHIF and DCMTK's dsr2html print values without their names.
    """
    if item.ValueType == _CONTAINER:
        item.ContinuityOfContent = "SEPARATE"
    for child in item.get("ContentSequence", []):
        separate(child)


def document(
    kind: type[sr.Comprehensive3DSR] | type[sr.EnhancedSR],
    content: pydicom.Dataset,
    images: Sequence[AnalysedImage],
    algorithm: Algorithm,
    device: DeviceObserver,
    *,
    created: datetime.datetime,
    seed: str,
    series_number: int,
    description: str,
    predecessor: Predecessor | None = None,
) -> pydicom.Dataset:
    """Wrap a content tree into a complete, unverified, preliminary document of the images' study.

    Parameters
    ----------
    kind : type
        highdicom's class of the SOP class to write.
    content : pydicom.Dataset
        Root container; its continuity is changed in place.
    images : sequence of AnalysedImage
        The evidence, at least one; all of one study.
    created : datetime
        When the result was made; converted to the source's Timezone Offset From UTC where it states one, otherwise
        written as it stands, so it is given in the site's own time.
    seed : str
        What makes the report unique; the UIDs of series and instance are derived from it.
    series_number : int
        Number of the new series.
    description : str
        Its name, at most 64 characters.

    Returns
    -------
    pydicom.Dataset
        Ready for `encode`.

    Raises
    ------
    ValueError
        If there is no image, or if they belong to different studies.
    """
    if len({image.dataset.StudyInstanceUID for image in images}) != 1:
        raise ValueError("a report covers one or more images of one study")
    header = images[0].dataset
    created = _local(created, header)
    separate(content)
    name = kind.__name__
    report: pydicom.Dataset = kind(
        evidence=[_evidence(image.dataset) for image in images],
        content=content,
        series_instance_uid=uids.derive("report series", name, seed),
        series_number=series_number,
        sop_instance_uid=uids.derive("report", name, seed),
        instance_number=1,
        manufacturer=device.manufacturer,
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
        specific_character_set=UTF8,
        manufacturer_model_name=device.model,
        software_versions=algorithm.version,
        device_serial_number=device.name,
        series_description=description,
        content_date=created.date(),
        content_time=created.time(),
        series_date=created.date(),
        series_time=created.time(),
    )
    # highdicom would write the present time, and itself as contributing equipment at the present time.
    report.InstanceCreationDate = report.ContentDate
    report.InstanceCreationTime = report.ContentTime
    report.ContributingEquipmentSequence = [_contribution(algorithm, created)]
    report.update({element.tag: element for element in header if element.keyword not in _OF_THE_IMAGE})
    if requests := _requests(images):
        report.ReferencedRequestSequence = requests
    if predecessor is not None:
        report.PredecessorDocumentsSequence = [_reference(predecessor, header.StudyInstanceUID)]
    report.file_meta.ImplementationClassUID = UID(_IMPLEMENTATION_CLASS_UID)
    report.file_meta.ImplementationVersionName = "VEILRAY"
    return report


def encode(report: pydicom.Dataset) -> bytes:
    """Write a report as a DICOM file (PS3.10)."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, report, enforce_file_format=True)
    return file.getvalue()


def _evidence(header: pydicom.Dataset) -> pydicom.Dataset:
    """Reduce a header to the UIDs.

    highdicom's warnings quote the patient's name and its constructor refuses values that are legal, so it gets to see
    neither: `document` copies the normalised attributes itself.
    """
    evidence = pydicom.Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        evidence[keyword] = header[keyword]
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(evidence, keyword, "")
    evidence.StudyDate = evidence.StudyTime = None
    return evidence


def _local(created: datetime.datetime, header: pydicom.Dataset) -> datetime.datetime:
    offset = header.get("TimezoneOffsetFromUTC")
    if offset and created.tzinfo is not None:
        sign = -1 if offset.startswith("-") else 1
        shift = sign * datetime.timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))
        created = created.astimezone(datetime.timezone(shift))
    return created.replace(tzinfo=None)


def _contribution(algorithm: Algorithm, created: datetime.datetime) -> pydicom.Dataset:
    return highdicom.ContributingEquipment(
        manufacturer=algorithm.manufacturer,
        purpose_of_reference=codes.PROCESSING_EQUIPMENT,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        contribution_datetime=created,
        contribution_description="Classification of pneumonia by encrypted inference",
    )


def _requests(images: Sequence[AnalysedImage]) -> list[pydicom.Dataset]:
    """Collect the orders that the images were made for, each once."""
    orders: dict[str, pydicom.Dataset] = {}
    for image in images:
        for item in image.dataset.get("RequestAttributesSequence", []):
            item.StudyInstanceUID = item.StudyInstanceUID or image.dataset.StudyInstanceUID
            orders.setdefault(item.to_json(), item)
    return list(orders.values())


def _reference(predecessor: Predecessor, study_instance_uid: str) -> pydicom.Dataset:
    instance = pydicom.Dataset()
    instance.ReferencedSOPClassUID = predecessor.sop_class_uid
    instance.ReferencedSOPInstanceUID = predecessor.sop_instance_uid
    series = pydicom.Dataset()
    series.SeriesInstanceUID = predecessor.series_instance_uid
    series.ReferencedSOPSequence = [instance]
    study = pydicom.Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = [series]
    return study
