"""The Basic Application Level Confidentiality Profile as a table (PS3.15 Annex E, Table E.1-1), for CR and DX images.

Stricter than the profile: what is not in the table is removed, whatever it is, so that private groups, overlays,
curves, free text, requests and every attribute of a future edition go without being named. Kept values must have the
form that the standard defines for them, or they go too: a name typed into a coded field is a name all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from dicom_node import vocabulary


class Action(Enum):
    """What becomes of an attribute (PS3.15 Table E.1-1a)."""

    D = "replaced by a dummy that fits its VR"
    Z = "emptied"
    X = "removed"
    K = "kept where its value has the form given"
    C = "cleaned: replaced by what holds nothing that identifies"
    U = "replaced by a UID of its own, the same for the same original within the site"


class Option(Enum):
    """Options of the profile that a caller may choose (PS3.16 CID 7050)."""

    PATIENT_CHARACTERISTICS = ("113108", "Retain Patient Characteristics Option")
    MODIFIED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")


@dataclass(frozen=True)
class Rule:
    """One attribute.

    Attributes
    ----------
    keyword : str
        PS3.6 keyword.
    action : Action
    why : str
        The clause, and for what the attribute is needed.
    form : str
        Regular expression that each kept value matches whole; empty where the VR holds numbers alone.
    option : Option or None
        Under this option `chosen` is done in place of `action`.
    strict : bool
        The picture depends on it: a value of another form refuses the image instead of going silently.
    """

    keyword: str
    action: Action
    why: str
    form: str = ""
    option: Option | None = None
    chosen: Action = Action.X
    strict: bool = False

    def under(self, options: frozenset[Option]) -> Action:
        """Return what is done when these options are chosen."""
        return self.chosen if self.option in options else self.action


D, Z, X, K, C, U = Action
DECIMAL = r"(?=.{1,16}$)[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?"
_CODES = "|".join(sorted(vocabulary.CHEST_CODES | set(vocabulary.VIEW_CODES)))
_PARTS = "|".join(sorted(vocabulary.BODY_PARTS | {"CHEST", "THORAX"}))
_VIEWS = "|".join(sorted(vocabulary.VIEW_POSITIONS))
BASIC = "E.1-1"
NOT_LISTED = "not in E.1-1"
PIXELS = f"{NOT_LISTED}; C.7.6.3, C.11: how the pixels are read"

#: In the order of PS3.6. Everything else is removed.
TABLE = (
    Rule("SpecificCharacterSet", D, f"{NOT_LISTED}; nothing but ASCII is left"),
    Rule("ImageType", K, f"{NOT_LISTED}; Type 1", "ORIGINAL|DERIVED|PRIMARY|SECONDARY"),
    Rule("SOPClassUID", K, f"{NOT_LISTED}; Type 1", r"[0-9.]+"),
    Rule("SOPInstanceUID", U, BASIC),
    Rule("StudyDate", Z, f"{BASIC} Z; E.3.6", r"\d{8}", Option.MODIFIED_DATES, C),
    Rule("SeriesDate", X, f"{BASIC} X/D; E.3.6", r"\d{8}", Option.MODIFIED_DATES, C),
    Rule("AcquisitionDate", X, f"{BASIC} X/Z; E.3.6", r"\d{8}", Option.MODIFIED_DATES, C),
    Rule("ContentDate", X, f"{BASIC} Z/D; E.3.6", r"\d{8}", Option.MODIFIED_DATES, C),
    Rule("StudyTime", Z, BASIC),
    Rule("AccessionNumber", Z, BASIC),
    Rule("Modality", K, f"{NOT_LISTED}; Type 1", "CR|DX"),
    Rule("PresentationIntentType", K, f"{NOT_LISTED}; Type 1", "FOR PRESENTATION"),
    Rule("Manufacturer", Z, "Type 2; stricter than E.1-1"),
    Rule("ReferringPhysicianName", Z, BASIC),
    Rule("CodeValue", K, f"{NOT_LISTED}; codes of chest and views alone", _CODES),
    Rule("CodingSchemeDesignator", K, f"{NOT_LISTED}; Type 1", "SCT|SRT|SNM3"),
    Rule("CodeMeaning", D, "Type 1; free text"),
    Rule("AnatomicRegionSequence", C, f"{NOT_LISTED}; Type 1 of DX"),
    Rule("PatientName", Z, BASIC),
    Rule("PatientID", D, f"{BASIC} Z; a pseudonym, so that images of one patient stay together"),
    Rule("PatientBirthDate", Z, BASIC),
    Rule("PatientSex", Z, f"{BASIC} Z; E.3.7", "M|F|O", Option.PATIENT_CHARACTERISTICS, K),
    Rule(
        "PatientAge",
        X,
        f"{BASIC} X; E.3.7, from 90 years on as 090Y",
        r"\d{3}[DWMY]",
        Option.PATIENT_CHARACTERISTICS,
        C,
    ),
    Rule("BodyPartExamined", K, f"{NOT_LISTED}; Annex L of PS3.16", _PARTS),
    Rule("ImagerPixelSpacing", K, f"{NOT_LISTED}; Type 1 of DX, millimetres", r"0?\.\d{1,6}|\d(\.\d{1,6})?"),
    Rule("PositionerType", D, "Type 2 of DX: NONE"),
    Rule("DetectorType", Z, "Type 2 of DX; stricter than E.1-1"),
    Rule("ViewPosition", K, f"{NOT_LISTED}; C.8.11.5", _VIEWS),
    Rule("StudyInstanceUID", U, BASIC),
    Rule("SeriesInstanceUID", U, BASIC),
    Rule("StudyID", Z, BASIC),
    Rule("SeriesNumber", Z, "Type 2; stricter than E.1-1"),
    Rule("InstanceNumber", Z, "Type 2; stricter than E.1-1"),
    Rule("PatientOrientation", K, f"{NOT_LISTED}; C.7.6.1.1.1", "[AFHLPR]{1,3}"),
    Rule("Laterality", K, f"{NOT_LISTED}; Type 2C", "[LR]"),
    Rule("ImageLaterality", K, f"{NOT_LISTED}; Type 1 of DX", "[RLUB]"),
    Rule("SamplesPerPixel", K, PIXELS),
    Rule("PhotometricInterpretation", K, PIXELS, "MONOCHROME[12]", strict=True),
    Rule("Rows", K, PIXELS),
    Rule("Columns", K, PIXELS),
    Rule("BitsAllocated", K, PIXELS),
    Rule("BitsStored", K, PIXELS),
    Rule("HighBit", K, PIXELS),
    Rule("PixelRepresentation", K, PIXELS),
    Rule("PixelPaddingValue", K, PIXELS),
    Rule("PixelPaddingRangeLimit", K, PIXELS),
    Rule("BurnedInAnnotation", D, "E.3.1: NO, after the check of the pixels"),
    Rule("PixelIntensityRelationship", K, PIXELS, "LIN|LOG|DISP"),
    Rule("PixelIntensityRelationshipSign", K, PIXELS),
    Rule("WindowCenter", K, PIXELS, DECIMAL, strict=True),
    Rule("WindowWidth", K, PIXELS, DECIMAL, strict=True),
    Rule("RescaleIntercept", K, PIXELS, DECIMAL, strict=True),
    Rule("RescaleSlope", K, PIXELS, DECIMAL, strict=True),
    Rule("RescaleType", K, PIXELS, "OD|HU|US"),
    Rule("VOILUTFunction", K, PIXELS, "LINEAR|LINEAR_EXACT|SIGMOID", strict=True),
    Rule("LossyImageCompression", K, PIXELS, "00|01"),
    Rule("ModalityLUTSequence", C, PIXELS),
    Rule("LUTDescriptor", K, PIXELS),
    Rule("ModalityLUTType", K, PIXELS, "OD|HU|US"),
    Rule("LUTData", K, PIXELS),
    Rule("VOILUTSequence", C, PIXELS),
    Rule("AcquisitionContextSequence", Z, "Type 2 of DX; stricter than E.1-1 (X/Z)"),
    Rule("ViewCodeSequence", C, f"{NOT_LISTED}; Type 1 of DX"),
    Rule("PresentationLUTShape", K, PIXELS, "IDENTITY|INVERSE", strict=True),
    Rule("PixelData", C, "E.3.1: decoded, so that no comment of a codec stays, and without bits above Bits Stored"),
)

#: What each sequence's items may hold; everything else in them is removed.
ITEMS = {
    "AnatomicRegionSequence": ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"),
    "ViewCodeSequence": ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"),
    "ModalityLUTSequence": ("LUTDescriptor", "ModalityLUTType", "LUTData"),
    "VOILUTSequence": ("LUTDescriptor", "LUTData"),
}
#: Dummies of the rows D that do not depend on the image.
DUMMIES = {
    "SpecificCharacterSet": "ISO_IR 192",
    "CodeMeaning": "as coded",
    "PositionerType": "NONE",
    "BurnedInAnnotation": "NO",
}
INSIDE = frozenset(keyword for keywords in ITEMS.values() for keyword in keywords)
BY_KEYWORD = {rule.keyword: rule for rule in TABLE}


def has_form(rule: Rule, value: str) -> bool:
    """Tell whether one value may be kept."""
    return re.fullmatch(rule.form, value) is not None


def lines(options: frozenset[Option]) -> Iterator[str]:
    """Say in one line each what is done with every attribute, for a site's documentation."""
    for rule in TABLE:
        action = rule.under(options)
        yield f"{rule.keyword}: {action.name}, {action.value} ({rule.why})"
    yield f"everything else: X, {Action.X.value}"
