"""Stored values out of Pixel Data, whatever the transfer syntax (PS3.5 section 8 and Annex A).

The one place that calls image codecs. Each compressed syntax has one codec, named here, so that the same file gives
the same values at every site; and a code stream's own header must agree with the Dataset before anything is decoded,
so that a small file cannot claim gigabytes.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from io import BytesIO

import gdcm
import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import decode as decode_jpeg_2000
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder

from .codestream import CodeStream, code_stream
from .core.errors import Refused

Words = NDArray[np.uint8] | NDArray[np.uint16]

# A 43 cm x 43 cm detector at 0.1 mm has 18.5 million pixels.
MAX_PIXELS = 50_000_000
# Below this side there is nothing a radiologist could read either; the training pictures start at about 130 pixels.
MIN_SIDE = 64
DCMDJPEG_TIMEOUT_S = 60.0

NATIVE = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
    }
)
JPEG_2000 = frozenset({*uid.JPEG2000TransferSyntaxes, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K})
# pydicom's name of the one codec used for each syntax.
PLUGIN = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.RLELossless: "pydicom",
}
# All that DCMTK is told of an image: the Image Pixel module, nothing of the patient.
IMAGE_PIXEL_KEYWORDS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
)

# GDCM prints what it meets in a broken stream; the refusal says it once, in our words.
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()
gdcm.Trace.DebugOff()


@dataclass(frozen=True)
class ImagePixel:
    """The Image Pixel module of a grey single-frame image (PS3.3 C.7.6.3).

    Attributes
    ----------
    rows, columns : int
        Size, pixels.
    allocated, stored : int
        Bits Allocated (8 or 16) and Bits Stored (1..allocated); High Bit is ``stored - 1``.
    signed : bool
        Whether Pixel Representation is two's complement.
    photometric : str
        ``MONOCHROME1`` or ``MONOCHROME2``.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool
    photometric: str


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Read one whole number; `default` stands for an absent or empty attribute, and without one it is refused."""
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise Refused(f"the image has no {keyword}: the sender must fill it", code="incomplete-header")
        return default
    return int(value)


def image_pixel(dataset: Dataset) -> ImagePixel:
    """Read and check the Image Pixel module.

    Raises
    ------
    Refused
        The image is not a grey single frame of 8 or 16 allocated bits, or its size is absurd.
    """
    if "PixelData" not in dataset:
        raise Refused("the object carries no Pixel Data: there is no image to read", code="no-pixel-data")
    if integer(dataset, "NumberOfFrames", 1) != 1:
        raise Refused("the object has several frames; a radiograph has one", code="multi-frame")
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or integer(dataset, "SamplesPerPixel", 1) != 1:
        raise Refused(
            "the image is in colour, or does not say that it is grey (PhotometricInterpretation must be MONOCHROME1 "
            "or MONOCHROME2)",
            code="not-grey",
        )
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if min(rows, columns) < MIN_SIDE:
        raise Refused(
            f"the image has {rows} x {columns} pixels, fewer than {MIN_SIDE} along a side: too few to read",
            code="too-small",
        )
    if rows * columns > MAX_PIXELS:
        raise Refused(
            f"the image has {rows} x {columns} pixels, more than the {MAX_PIXELS:,} accepted", code="too-large"
        )
    allocated = integer(dataset, "BitsAllocated")
    stored = integer(dataset, "BitsStored", allocated)
    if (
        allocated not in (8, 16)
        or not 1 <= stored <= allocated
        or integer(dataset, "HighBit", stored - 1) != stored - 1
    ):
        raise Refused(
            "BitsAllocated, BitsStored and HighBit are not those of a radiograph (8 or 16 bits allocated, the value in "
            "the low bits)",
            code="unsupported-bits",
        )
    signed = integer(dataset, "PixelRepresentation", 0) == 1
    return ImagePixel(rows, columns, allocated, stored, signed, photometric)


def words(dataset: Dataset, pixel: ImagePixel) -> Words:
    """Decode the frame to its stored words, bits above Bits Stored included.

    Parameters
    ----------
    dataset : Dataset
        As read from a file, or built in memory with its ``file_meta``.
    pixel : ImagePixel
        What `image_pixel` said about it.

    Returns
    -------
    ndarray of uint8 or uint16, shape (rows, columns)
        Two's complement words where the image is signed.

    Raises
    ------
    Refused
        No codec for the transfer syntax, or the stream is broken or contradicts the header.
    """
    syntax = _transfer_syntax(dataset)
    if syntax in NATIVE:
        return _native(dataset, syntax, pixel)
    if syntax not in JPEG_2000 and syntax not in PLUGIN:
        name = syntax.name if syntax in uid.AllTransferSyntaxes else "a private one"
        raise Refused(f"no decoder for the image's transfer syntax ({name}): send it uncompressed", code="no-codec")
    try:
        values = _decompressed(dataset, syntax, pixel)
    except (Refused, MemoryError):
        raise
    except Exception:
        # The codecs share no base class, and what they say of a broken stream helps nobody who could repair it.
        raise Refused(
            f"the compressed image ({syntax.name}) is truncated or broken: the sender must send it again",
            code="broken-pixel-data",
        ) from None
    if values.shape != (pixel.rows, pixel.columns):
        raise Refused("the decoded image does not have the size that the header states", code="broken-pixel-data")
    # Widening a signed array extends its sign, and the cast back to unsigned keeps the low bits.
    return values.astype(np.uint8) if pixel.allocated == 8 else values.astype(np.uint16)


def _decompressed(dataset: Dataset, syntax: uid.UID, pixel: ImagePixel) -> NDArray[np.generic]:
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == uid.RLELossless:
        precision = pixel.stored
    else:
        stream = code_stream(frame)
        _agree(stream, pixel)
        precision = stream.precision
    if syntax in JPEG_2000:
        return decode_jpeg_2000(frame)
    if syntax == uid.JPEGExtended12Bit and precision != 8:
        return _dcmdjpeg(dataset, pixel)
    values, _ = get_decoder(syntax).as_array(dataset, raw=True, index=0, decoding_plugin=PLUGIN[syntax])
    return values


def _agree(stream: CodeStream, pixel: ImagePixel) -> None:
    """Refuse a code stream that contradicts the Dataset it stands in."""
    if stream.components != 1:
        raise Refused("the compressed image is in colour though its header says grey", code="not-grey")
    if (stream.rows, stream.columns) != (pixel.rows, pixel.columns) or stream.precision > pixel.allocated:
        raise Refused(
            "the compressed image has another size or depth than its header states: the sender must repair it",
            code="broken-pixel-data",
        )
    if stream.signed != pixel.signed and stream.precision < pixel.stored:
        raise Refused(
            "the compressed image and its header disagree on whether values are signed", code="broken-pixel-data"
        )


def _transfer_syntax(dataset: Dataset) -> uid.UID:
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if syntax:
        return uid.UID(syntax)
    # An ACR-NEMA style file has no meta header; how it was parsed says how it was written.
    implicit, little = dataset.original_encoding
    if little is False:
        return uid.ExplicitVRBigEndian
    return uid.ExplicitVRLittleEndian if implicit is False else uid.ImplicitVRLittleEndian


def _native(dataset: Dataset, syntax: uid.UID, pixel: ImagePixel) -> Words:
    """Read uncompressed words; a short value is refused, a trailing pad is not (PS3.5 section 8.1.1)."""
    dtype = np.dtype(np.uint8 if pixel.allocated == 8 else np.uint16)
    expected = pixel.rows * pixel.columns * dtype.itemsize
    data = dataset.PixelData
    if len(data) < expected:
        raise Refused(f"Pixel Data ends early: {len(data):,} of {expected:,} bytes are there", code="broken-pixel-data")
    if len(data) >= 2 * expected:
        raise Refused("Pixel Data holds more than one frame though the header says one", code="multi-frame")
    if syntax == uid.ExplicitVRBigEndian and pixel.allocated == 8 and dataset["PixelData"].VR == "OW":
        # OW is swapped as 16-bit words, whatever lies in them (PS3.5 section 8.1.1).
        flat = np.frombuffer(data[: expected + expected % 2], np.uint16).byteswap().view(np.uint8)[:expected]
    else:
        flat = np.frombuffer(
            data, dtype.newbyteorder(">" if syntax == uid.ExplicitVRBigEndian else "<"), expected // dtype.itemsize
        )
    return flat.astype(dtype).reshape(pixel.rows, pixel.columns)


def _dcmdjpeg(dataset: Dataset, pixel: ImagePixel) -> Words:
    """Decode 12-bit JPEG Extended with DCMTK, which no Python codec we may ship does; no patient data is passed on."""
    program = shutil.which("dcmdjpeg")
    if program is None:
        raise Refused(
            "12-bit JPEG Extended needs the program dcmdjpeg (package dcmtk) on the node, or send it uncompressed",
            code="no-codec",
        )
    bare = Dataset()
    for keyword in IMAGE_PIXEL_KEYWORDS:
        bare[keyword] = dataset[keyword]
    bare.SOPClassUID, bare.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "2.25.1"
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = uid.JPEGExtended12Bit
    buffer = BytesIO()
    bare.save_as(buffer, enforce_file_format=True)
    done = subprocess.run(  # noqa: S603 - a fixed argument list; the untrusted stream goes to its standard input
        [program, "-", "-"], input=buffer.getvalue(), capture_output=True, check=False, timeout=DCMDJPEG_TIMEOUT_S
    )
    if done.returncode != 0:
        raise Refused("the JPEG Extended stream is broken: dcmdjpeg cannot decode it", code="broken-pixel-data")
    return _native(dcmread(BytesIO(done.stdout)), uid.ExplicitVRLittleEndian, pixel)
