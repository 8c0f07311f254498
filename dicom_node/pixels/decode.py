"""Stored values out of Pixel Data, whatever the transfer syntax (PS3.5 section 8 and Annex A).

A code stream's own header must agree with the Dataset before anything is decoded, so that a small file cannot claim
gigabytes.
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset, uid
from pydicom.encaps import get_frame

from ..core.errors import Refused
from . import codec_process
from .codec_process import Words
from .codestream import CodeStream, code_stream
from .image_pixel import ImagePixel

NATIVE = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
    }
)
# Those that `decompress` has a codec for.
ENCAPSULATED = frozenset(
    {
        *uid.JPEGTransferSyntaxes,
        *uid.JPEGLSTransferSyntaxes,
        *uid.JPEG2000TransferSyntaxes,
        uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL,
        uid.HTJ2K,
        uid.RLELossless,
    }
)


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
    if syntax not in ENCAPSULATED:
        name = syntax.name if syntax in uid.AllTransferSyntaxes else "a private one"
        raise Refused(f"no decoder for the image's transfer syntax ({name}): send it uncompressed", code="no-codec")
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax != uid.RLELossless:
        _agree(code_stream(frame), pixel)
    if syntax in uid.JPEGLSTransferSyntaxes and not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        # Without its end marker CharLS looks for it for ever.
        raise Refused("the compressed image ends early: the sender must send it again", code="broken-pixel-data")
    values = codec_process.SHARED.decompress(frame, syntax, pixel)
    if values.shape != (pixel.rows, pixel.columns):
        raise Refused("the decoded image does not have the size that the header states", code="broken-pixel-data")
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
