"""Test inputs: one grey picture as a DX or CR object, in any encoding that a modality may choose."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from PIL import Image
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate

from dicom_node import phantom

LOSSLESS_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
    uid.RLELossless,
)

#: Specific Character Set (0008,0005) and a name that needs it.
CHARACTER_SETS: tuple[tuple[str | Sequence[str], str], ...] = (
    ("", "Phantom^One"),
    ("ISO_IR 100", "Äneas^Rüdiger"),
    ("ISO_IR 101", "Wałęsa^Łucja"),
    ("ISO_IR 144", "Люкceмбypг^Анна"),
    ("ISO_IR 126", "Διονυσιος^Α"),
    ("ISO_IR 127", "قباني^لنزار"),
    ("ISO_IR 138", "שרון^דבורה"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
    ("ISO_IR 192", "Ωmega^Ñandú=山田^太郎"),
)

# Of a CR image, what PS3.3 A.2 leaves out when an object holds only Type 1 and Type 2 attributes.
OPTIONAL_IN_CR = (
    *("PatientAge", "StudyDescription", "SeriesDescription", "ManufacturerModelName", "DeviceSerialNumber"),
    *("SoftwareVersions", "RequestAttributesSequence", "ImageType", "ContentDate", "ContentTime", "AcquisitionDate"),
    *("AcquisitionTime", "BurnedInAnnotation", "LossyImageCompression", "AcquisitionContextSequence"),
    *("WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope", "RescaleType", "ImagerPixelSpacing"),
    *("PatientSex", "PatientBirthDate", "StudyID", "AccessionNumber", "StudyDate", "StudyTime", "Manufacturer"),
)
EMPTY_IN_CR = ("PatientSex", "PatientBirthDate", "StudyID", "AccessionNumber", "StudyDate", "StudyTime", "Manufacturer")
ONLY_IN_DX = (
    *("PresentationIntentType", "PresentationLUTShape", "PixelIntensityRelationship", "PixelIntensityRelationshipSign"),
    *("ViewCodeSequence", "AnatomicRegionSequence", "ImageLaterality", "PositionerType", "DetectorType", "DetectorID"),
)


def picture(path: Path) -> NDArray[np.uint8]:
    """Read a JPEG as grey values, shape (rows, columns)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def radiograph(
    source: NDArray[np.uint8] | Path,
    *,
    sop_class: Literal["DX", "CR"] = "DX",
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    bits: Literal[8, 12] = 8,
    transfer_syntax: uid.UID = uid.ExplicitVRLittleEndian,
    study: phantom.Study | None = None,
    number: int = 1,
    view: phantom.View = "AP",
    character_set: str | Sequence[str] = "ISO_IR 192",
    patient_name: str | None = None,
    minimal: bool = False,
) -> Dataset:
    """Wrap a picture as a radiograph that renders to the same grey values whatever the encoding.

    Parameters
    ----------
    source : ndarray of uint8 or Path
        The picture, bright is dense, or a JPEG file of it.
    bits : int
        Bits Stored; 12-bit values are the picture's times 16, with the window that gives the picture back.
    minimal : bool
        A CR object with its mandatory attributes alone; body part and view stay, since selection reads them.
    """
    grey = picture(source) if isinstance(source, Path) else source
    image = phantom.dataset(grey, study=study or phantom.Study("test"), number=number, view=view)
    values = grey.astype(np.uint16) * 16 if bits == 12 else grey
    top = 4095 if bits == 12 else 255
    if bits == 12:
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        # LINEAR maps centre - 0.5 +- (width - 1) / 2 to black and white: 0 and 4080.
        image.WindowCenter, image.WindowWidth = "2040.5", "4081"
    if photometric == "MONOCHROME1":
        values = top - values
        image.PhotometricInterpretation, image.PresentationLUTShape = "MONOCHROME1", "INVERSE"
        image.WindowCenter = str(top + 1 - image.WindowCenter)
    if character_set == "":  # the default repertoire is said by silence
        del image.SpecificCharacterSet
    else:
        image.SpecificCharacterSet = character_set if isinstance(character_set, str) else list(character_set)
    if patient_name is not None:
        image.PatientName = patient_name
    if sop_class == "CR" or minimal:
        _make_cr(image, minimal=minimal)
    _encode(image, values, bits, transfer_syntax)
    return image


def _make_cr(image: Dataset, *, minimal: bool) -> None:
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    image.Modality = "CR"
    for keyword in (*ONLY_IN_DX, *(OPTIONAL_IN_CR if minimal else ())):
        if keyword in image:
            del image[keyword]
    if minimal:
        for keyword in EMPTY_IN_CR:
            setattr(image, keyword, "")


def _encode(image: Dataset, values: NDArray[np.uint8 | np.uint16], bits: int, syntax: uid.UID) -> None:
    data = values.tobytes()
    image.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if syntax == uid.JPEG2000Lossless:
        compressed(encode_array(values, bits_stored=bits), syntax, image)
    elif syntax.is_encapsulated:
        plugin = "pyjpegls" if syntax in uid.JPEGLSTransferSyntaxes else "pydicom"
        image.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    else:
        image.file_meta.TransferSyntaxUID = syntax


def read(path: Path) -> Dataset:
    """Read a real file, whatever pydicom thinks of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True)


def compressed(frame: bytes, syntax: uid.UID, like: Dataset) -> Dataset:
    """Put an encoded frame into a Dataset in place of its pixels."""
    like.PixelData = encapsulate([frame])
    like["PixelData"].VR, like["PixelData"].is_undefined_length = "OB", True
    like.file_meta.TransferSyntaxUID = syntax
    return like


def jpeg_lossless(values: NDArray[np.integer[Any]], precision: int) -> bytes:
    """Encode by ITU-T T.81 Annex H, selection value 1, with sixteen four-bit and five-bit Huffman codes."""
    rows, columns = values.shape
    known = values.astype(int)
    predicted = np.empty_like(known)
    predicted[:, 1:] = known[:, :-1]
    predicted[1:, 0] = known[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits = []
    for difference in (known - predicted).ravel():
        category = int(abs(difference)).bit_length()
        code = f"{category:04b}" if category < 15 else f"{30 + category - 15:05b}"
        low = int(difference) if difference > 0 else int(difference) + (1 << category) - 1
        bits.append(code + (f"{low:0{category}b}" if category else ""))
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    entropy = int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\x00")
    sizes = rows.to_bytes(2) + columns.to_bytes(2)
    frame_header = b"\xff\xc3\x00\x0b" + bytes([precision]) + sizes + b"\x01\x01\x11\x00"
    tables = b"\xff\xc4\x00\x23\x00" + bytes([0, 0, 0, 15, 1, *[0] * 11]) + bytes(range(16))
    return b"\xff\xd8" + frame_header + tables + b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00" + entropy + b"\xff\xd9"
