"""Normalise the header of a source image to valid values in UTF-8 (PS3.5 6.1 and 6.2, PS3.3 C.7.1 and C.7.2).

Archives send names in a dozen encodings, values that break their VR and headers without mandatory attributes. A
report inherits all of it, so the header is rebuilt from a list of attributes, each through the parser of its VR; what
cannot be repaired is left empty, which Type 2 allows. Patient Comments and private attributes are not on the list.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydicom
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from dicom_node.core.errors import Refused

UTF8 = "ISO_IR 192"

_SOP_CLASSES = {
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
}

# Bytes that end the reach of an escape sequence, PS3.5 6.1.2.5.3: TAB, LF, FF, CR, backslash, and in names ^ and =.
_DELIMITERS = {0x09, 0x0A, 0x0C, 0x0D, 0x5C, 0x5E, 0x3D}


def normalise(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Rebuild what a report inherits from a source image.

    Parameters
    ----------
    dataset : pydicom.Dataset
        The source image; it is not changed and its pixel data is not read. Best as read from the file: pydicom's own
        decoding loses names whose double-byte characters contain a backslash or an equals sign.

    Returns
    -------
    pydicom.Dataset
        Header in ISO_IR 192 with the UIDs, Rows, Columns, every Type 2 attribute of the Patient and General Study
        modules, and those optional ones of the list below that hold a valid value.

    Raises
    ------
    Refused
        If a UID or the size of the image is missing or invalid, or if it is of no class that radiographs come in;
        such an image cannot be reported on.
    """
    reader = _Reader(dataset)
    header = pydicom.Dataset()
    header.SpecificCharacterSet = UTF8
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        value = reader.uid(keyword)
        if not value:
            raise Refused(f"The image's {keyword} is missing or invalid: no report can refer to it", code="source-uid")
        setattr(header, keyword, value)
    if header.SOPClassUID not in _SOP_CLASSES:
        raise Refused("The image's SOP class is none that radiographs come in", code="source-class")
    for keyword in ("Rows", "Columns"):
        size = reader.raw(keyword)
        number = int.from_bytes(size, reader.byte_order) if isinstance(size, bytes) and len(size) == 2 else size
        if not isinstance(number, int) or not 0 < number < 2**16:
            raise Refused(
                f"The image's {keyword} is missing or invalid: it has no size to report on", code="source-size"
            )
        setattr(header, keyword, number)
    for keyword in _TYPE_2:
        setattr(header, keyword, reader.value(keyword))
    for keyword in _OPTIONAL:
        if value := reader.value(keyword):
            setattr(header, keyword, value)
    if header.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in header:
        header.DeidentificationMethod = "Not stated"  # Type 1C, and the source's statement must not be lost
    for keyword in ("ProcedureCodeSequence", "RequestAttributesSequence"):
        if items := reader.items(keyword):
            setattr(header, keyword, items)
    return header


class _Reader:
    """Reads attributes of one dataset or item, whatever their state, and never raises on their values."""

    def __init__(self, dataset: pydicom.Dataset, encodings: Sequence[str] = ("iso8859",)) -> None:
        self._dataset = dataset
        self._encodings = _encodings(dataset, encodings)
        big = getattr(dataset, "original_encoding", (None, True))[1] is False
        self.byte_order: Any = "big" if big else "little"

    def raw(self, keyword: str) -> Any:
        """Return the attribute's value, encoded or decoded; None where there is none."""
        tag = tag_for_keyword(keyword)
        assert tag is not None
        try:
            element = self._dataset.get_item(tag)
        except Exception:  # pydicom has no common error for unreadable elements
            return None
        return None if element is None else element.value

    def text(self, keyword: str) -> str:
        """First value as clean text, without the control characters and backslash that no VR of a header allows."""
        value = self.raw(keyword)
        if isinstance(value, bytes):
            value = _decode(value, self._encodings)
        elif isinstance(value, (MultiValue, list, tuple)):
            value = value[0] if value else None
        if value is None:
            return ""
        first = str(value).split("\\", maxsplit=1)[0]
        # Lone surrogates and noncharacters cannot be written or are refused by validators.
        kept = (character for character in first if unicodedata.category(character) not in {"Cc", "Cs", "Cn"})
        return "".join(kept).strip()

    def uid(self, keyword: str) -> str:
        """Return a valid UID (PS3.5 9.1) or nothing; a repaired UID would be another one."""
        value = self.text(keyword)
        return value if re.fullmatch(r"[012](\.(0|[1-9]\d*))+", value, re.ASCII) and len(value) <= 64 else ""

    def value(self, keyword: str) -> str:
        """Return the attribute as its parser repairs it."""
        return (_TYPE_2.get(keyword) or _OPTIONAL[keyword])(self.text(keyword))

    def items(self, keyword: str) -> list[pydicom.Dataset]:
        """Items of a sequence that are complete; broken ones are left out."""
        tag = tag_for_keyword(keyword)
        assert tag is not None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as in _decode
                sequence = self._dataset[tag].value if tag in self._dataset else []
            readers = [_Reader(item, self._encodings) for item in sequence]
        except Exception:  # as in raw: a broken sequence is as good as none
            return []
        build = _code_item if keyword.endswith("CodeSequence") else _request_item
        return [item for reader in readers if (item := build(reader)) is not None]


def _encodings(dataset: pydicom.Dataset, inherited: Sequence[str]) -> Sequence[str]:
    tag = tag_for_keyword("SpecificCharacterSet")
    assert tag is not None
    try:
        element = dataset.get_item(tag)
        if element is None:
            return inherited
        value = element.value
        if isinstance(value, bytes):
            value = value.decode("ascii", "replace").strip(" \0").split("\\")
        elif isinstance(value, str):
            value = [value]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of spelling mistakes that it repairs
            return convert_encodings([str(one).strip() for one in value or [""]]) or inherited
    except Exception:  # an unknown character set: the default one, with replacement characters
        return inherited


def _decode(value: bytes, encodings: Sequence[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of bytes that it replaces
        return decode_bytes(value, encodings, _DELIMITERS)


def _longest(limit: int) -> Callable[[str], str]:
    return lambda text: text[:limit].rstrip()


def _identifier(limit: int) -> Callable[[str], str]:
    """Leave an identifier that is too long empty: its beginning may be another patient's or order's whole number."""
    return lambda text: text if len(text) <= limit else ""


def _code(*allowed: str) -> Callable[[str], str]:
    return lambda text: text.upper() if text.upper() in allowed else ""


def _person(text: str) -> str:
    """PN: at most three groups of 64 characters and five components (PS3.5 6.2.1)."""
    groups = ("^".join(group.split("^")[:5])[:64].strip() for group in text.split("=")[:3])
    return "=".join(groups).rstrip("=")


def _date(text: str) -> str:
    digits = re.sub(r"[-./]", "", text)
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").strftime("%Y%m%d") if len(digits) == 8 else ""
    except ValueError:
        return ""


def _time(text: str) -> str:
    compact = text.replace(":", "")
    match = re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", compact, re.ASCII)
    return compact if match else ""


def _matching(pattern: str) -> Callable[[str], str]:
    return lambda text: text if re.fullmatch(pattern, text, re.ASCII) else ""


_decimal = _matching(r"(?=.{1,16}$)[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def _code_item(reader: _Reader) -> pydicom.Dataset | None:
    """Code Sequence Macro, PS3.3 Table 8.8-1: all three parts or none."""
    item = pydicom.Dataset()
    item.CodeValue = _identifier(16)(reader.text("CodeValue"))
    item.CodingSchemeDesignator = _identifier(16)(reader.text("CodingSchemeDesignator"))
    item.CodeMeaning = _longest(64)(reader.text("CodeMeaning"))
    if not (item.CodeValue and item.CodingSchemeDesignator and item.CodeMeaning):
        return None
    if version := _identifier(16)(reader.text("CodingSchemeVersion")):
        item.CodingSchemeVersion = version
    return item


def _request_item(reader: _Reader) -> pydicom.Dataset | None:
    """Referenced Request Sequence, PS3.3 C.17.2: without the study's UID the order cannot be named."""
    item = pydicom.Dataset()
    item.StudyInstanceUID = reader.uid("StudyInstanceUID")
    item.ReferencedStudySequence = []
    item.AccessionNumber = _identifier(16)(reader.text("AccessionNumber"))
    item.PlacerOrderNumberImagingServiceRequest = _identifier(64)(reader.text("PlacerOrderNumberImagingServiceRequest"))
    item.FillerOrderNumberImagingServiceRequest = _identifier(64)(reader.text("FillerOrderNumberImagingServiceRequest"))
    item.RequestedProcedureID = _identifier(16)(reader.text("RequestedProcedureID"))
    item.RequestedProcedureDescription = _longest(64)(reader.text("RequestedProcedureDescription"))
    item.RequestedProcedureCodeSequence = reader.items("RequestedProcedureCodeSequence")[:1]
    named = item.RequestedProcedureID or item.AccessionNumber or item.RequestedProcedureDescription
    return item if named else None


_TYPE_2: Mapping[str, Callable[[str], str]] = {
    "PatientName": _person,
    "PatientID": _identifier(64),
    "PatientBirthDate": _date,
    "PatientSex": _code("M", "F", "O"),
    "StudyDate": _date,
    "StudyTime": _time,
    "AccessionNumber": _identifier(16),
    "StudyID": _identifier(16),
    "ReferringPhysicianName": _person,
}

_OPTIONAL: Mapping[str, Callable[[str], str]] = {
    "IssuerOfPatientID": _longest(64),
    "PatientBirthTime": _time,
    "PatientIdentityRemoved": _code("YES", "NO"),
    "DeidentificationMethod": _longest(64),
    "StudyDescription": _longest(64),
    "PatientAge": _matching(r"[0-9]{3}[DWMY]"),
    "PatientSize": _decimal,
    "PatientWeight": _decimal,
    "AdmissionID": _identifier(64),
    "TimezoneOffsetFromUTC": _matching(r"[+-](0\d|1[0-4])[0-5]\d"),
}
