"""Makes an image without its patient (PS3.15 Annex E), by the table in `confidentiality`.

The result is built from nothing and filled from the table, so that an attribute that the table does not name cannot
get in: not in a nested item, not in a private block, not in the preamble or the meta information of the file.
"""

from __future__ import annotations

import datetime

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node import malformed, part10
from dicom_node.core.errors import Refused
from dicom_node.pixels import decode, image_pixel
from dicom_node.pixels.image_pixel import ImagePixel
from dicom_node.store import IMAGES

from . import burned_in, confidentiality
from .confidentiality import Action, Option, Rule
from .site_key import SiteKey

PROFILE = ("113100", "Basic Application Confidentiality Profile")
OLDEST_YEARS = 89
NO_OPTIONS: frozenset[Option] = frozenset()


def deidentify(dataset: Dataset, key: SiteKey, options: frozenset[Option] = NO_OPTIONS) -> Dataset:
    """Return a new image that holds nothing of its patient but pixels and what the options keep.

    Parameters
    ----------
    dataset : Dataset
        A CR, DX or SC image; left as it is.
    key : SiteKey
        Behind pseudonym, UIDs and the shift of dates; images of one study stay together.
    options : frozenset of Option
        What is kept beyond the basic profile.

    Returns
    -------
    Dataset
        With fresh ``file_meta``, uncompressed.

    Raises
    ------
    Refused
        The pixels hold print or a recognisable face, or say so (``burned-in``, ``recognizable``); the object is of
        another class (``sop-class``), is ``malformed``, or its pixels cannot be read (see `pixels`).
    """
    with malformed.refused("the image"):
        _refuse_declared(dataset)
        pixel = image_pixel.read(dataset)
        clean = Dataset()
        for rule in confidentiality.TABLE:
            if rule.keyword not in confidentiality.INSIDE:
                _apply(rule, dataset, clean, key, options, pixel)
        _declare(clean, options)
        return clean


def _refuse_declared(dataset: Dataset) -> None:
    if dataset.get("SOPClassUID") not in IMAGES:
        raise Refused("only CR, DX and SC images are de-identified", code="sop-class")
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() not in ("", "NO"):
        raise Refused("BurnedInAnnotation (0028,0301) says that the pixels hold text", code="burned-in")
    if str(dataset.get("RecognizableVisualFeatures", "")).strip().upper() not in ("", "NO"):
        raise Refused(
            "RecognizableVisualFeatures (0028,0302) says that a person can be recognised", code="recognizable"
        )


def _apply(
    rule: Rule,
    source: Dataset,
    clean: Dataset,
    key: SiteKey,
    options: frozenset[Option],
    pixel: ImagePixel,
) -> None:
    """Put into `clean` what the table leaves of one attribute."""
    action = rule.under(options)
    if action is Action.X or (rule.keyword not in source and action is not Action.D):
        return
    if action is Action.Z:
        setattr(clean, rule.keyword, [] if dictionary_VR(rule.keyword) == "SQ" else "")
    elif action is Action.D:
        setattr(clean, rule.keyword, confidentiality.DUMMIES.get(rule.keyword) or _pseudonym(source, key))
    elif action is Action.U:
        setattr(clean, rule.keyword, key.uid(str(source[rule.keyword].value)))
    elif action is Action.K:
        _keep(rule, source[rule.keyword], clean, pixel)
    elif rule.keyword in confidentiality.ITEMS:
        items = [_item(rule.keyword, item, key, options, pixel) for item in source[rule.keyword].value or ()]
        setattr(clean, rule.keyword, [item for item in items if item])
    elif rule.keyword == "PixelData":
        clean.add_new(rule.keyword, "OW", _pixels(source, pixel))
    elif rule.keyword == "PatientAge":
        clean.PatientAge = _age(rule, str(source.PatientAge or ""))
    else:
        shifted = _shifted(str(source[rule.keyword].value or ""), key.days(_pseudonym(source, key)))
        setattr(clean, rule.keyword, shifted)


def _item(
    sequence: str, source: Dataset, key: SiteKey, options: frozenset[Option], pixel: ImagePixel
) -> Dataset | None:
    """Clean one item; None where nothing is left that makes it worth having."""
    item = Dataset()
    for keyword in confidentiality.ITEMS[sequence]:
        _apply(confidentiality.BY_KEYWORD[keyword], source, item, key, options, pixel)
    needed = "LUTData" if "LUTData" in confidentiality.ITEMS[sequence] else "CodeValue"
    return item if needed in item else None


def _keep(rule: Rule, element: DataElement, clean: Dataset, pixel: ImagePixel) -> None:
    """Keep a value of the right form; of several values, those that have it."""
    if rule.keyword == "LUTData":
        _keep_table(element, clean)
        return
    several = isinstance(element.value, MultiValue | list | tuple)
    values = [one for one in (element.value if several else [element.value]) if one is not None and one != ""]
    if rule.form:
        texts = [str(one).strip() for one in values]
        kept: list[str] | list[int] = [text for text in texts if confidentiality.has_form(rule, text)]
        if rule.strict and len(kept) < len(texts):
            raise Refused(f"{rule.keyword} does not have the form of the standard: repair it", code="unclean-value")
        vr = dictionary_VR(rule.keyword)
    else:
        kept = [int(value) for value in values]
        signed = pixel.signed or min(kept, default=0) < 0
        vr = dictionary_VR(rule.keyword) if " or " not in dictionary_VR(rule.keyword) else ("SS" if signed else "US")
        kept = [_as(vr, value) for value in kept]
    if kept:
        clean.add_new(rule.keyword, vr, kept if len(kept) > 1 else kept[0])


def _as(vr: str, value: int) -> int:
    """Read a word as US or SS, whichever the attribute has here."""
    word = value & 0xFFFF
    return word - 0x10000 if vr == "SS" and word >= 0x8000 else word


def _keep_table(element: DataElement, clean: Dataset) -> None:
    """Keep a LUT's entries, as many as its descriptor states: what follows them could be anything."""
    entries = int(clean.LUTDescriptor[0]) % 65536 or 65536
    data = element.value
    if isinstance(data, bytes):
        width = 1 if len(data) <= entries + 1 else 2
        kept = data[: entries * width]
        clean.add_new("LUTData", "OW", kept + b"\0" * (len(kept) % 2))
    else:
        words = np.asarray(data).astype("<u2")[:entries]
        clean.add_new("LUTData", "OW", words.tobytes())


def _pixels(source: Dataset, pixel: ImagePixel) -> bytes:
    """Decode the pixels, check them for print, and drop the bits that no viewer shows (old overlays)."""
    words = decode.words(source, pixel)
    mask = (1 << pixel.stored) - 1
    stored = (words & mask).astype(np.int32)
    if pixel.signed:
        half = 1 << (pixel.stored - 1)
        stored = (stored ^ half) - half
    if burned_in.has_print(stored.astype(np.float32)):
        raise Refused("the pixels seem to hold a line of print: remove it, or leave the image out", code="burned-in")
    data = stored.astype("<u2" if pixel.allocated == 16 else np.uint8).tobytes()
    return data + b"\0" * (len(data) % 2)


def _pseudonym(source: Dataset, key: SiteKey) -> str:
    identity = (str(source.get(keyword) or "").strip() for keyword in ("PatientID", "IssuerOfPatientID"))
    return key.pseudonym("deidentified-patient", *identity)[:16]


def _age(rule: Rule, value: str) -> str:
    if not confidentiality.has_form(rule, value):
        return ""
    return "090Y" if value.endswith("Y") and int(value[:3]) > OLDEST_YEARS else value


def _shifted(value: str, days: int) -> str:
    try:
        return (datetime.datetime.strptime(value, "%Y%m%d") - datetime.timedelta(days=days)).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def _declare(clean: Dataset, options: frozenset[Option]) -> None:
    """State what was done (PS3.3 C.12.1.1.4, C.7.1.1)."""
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "PS3.15 Annex E, allow-list"
    codes = []
    for value, meaning in [PROFILE, *sorted(option.value for option in options)]:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    clean.DeidentificationMethodCodeSequence = codes
    dates = Option.MODIFIED_DATES in options
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if dates else "REMOVED"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = clean.SOPClassUID, clean.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(part10.IMPLEMENTATION_CLASS_UID)
    clean.file_meta = meta
    clean.preamble = b"\0" * 128
