"""The image codecs, as a program of its own (PS3.5 section 8.2 and Annex A.4).

Codecs are native code fed by strangers: a damaged JPEG Lossless frame makes GDCM abort its process, a damaged JPEG-LS
frame can keep CharLS busy for minutes. `codec_process` therefore runs this module as a child that may die. Each
transfer syntax has one codec, so that the same file gives the same values at every site.

On standard input and output: a line of JSON, then the bytes whose number it states.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from io import BytesIO
from typing import BinaryIO

import gdcm
import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import decode as decode_jpeg_2000
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from ..core.errors import Refused
from .codestream import code_stream
from .image_pixel import ImagePixel

JPEG_2000 = frozenset({*uid.JPEG2000TransferSyntaxes, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K})
# pydicom's name of the codec for each other syntax.
PLUGIN = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.RLELossless: "pydicom",
}
DCMDJPEG_TIMEOUT_S = 20.0
# Fifty million pixels take OpenJPEG about 1 GiB.
ADDRESS_SPACE = 6 * 2**30


def decompress(frame: bytes, syntax: uid.UID, pixel: ImagePixel) -> NDArray[np.generic]:
    """Decode one frame.

    Parameters
    ----------
    frame : bytes
        The code stream, without fragments' item headers.
    syntax : UID
        A transfer syntax of `JPEG_2000` or `PLUGIN`.
    pixel : ImagePixel
        What the header says of the frame.

    Returns
    -------
    ndarray, shape (rows, columns)
        Integers of any width and sign that hold the values.
    """
    if syntax in JPEG_2000:
        return decode_jpeg_2000(frame)
    bare = _bare(frame, syntax, pixel)
    if syntax == uid.JPEGExtended12Bit and code_stream(frame).precision != 8:
        return _dcmdjpeg(bare)
    values, _ = get_decoder(syntax).as_array(bare, raw=True, index=0, decoding_plugin=PLUGIN[syntax])
    return values


def _bare(frame: bytes, syntax: uid.UID, pixel: ImagePixel) -> Dataset:
    """Make a Dataset that holds the image and nothing of its patient."""
    bare = Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "2.25.1"
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, pixel.photometric
    bare.Rows, bare.Columns = pixel.rows, pixel.columns
    bare.BitsAllocated, bare.BitsStored, bare.HighBit = pixel.allocated, pixel.stored, pixel.stored - 1
    bare.PixelRepresentation = int(pixel.signed)
    bare.PixelData = encapsulate([frame])
    bare["PixelData"].VR, bare["PixelData"].is_undefined_length = "OB", True
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    return bare


def _dcmdjpeg(bare: Dataset) -> NDArray[np.generic]:
    """Decode 12-bit JPEG Extended with DCMTK, which no Python codec that may be shipped does."""
    program = shutil.which("dcmdjpeg")
    if program is None:
        raise Refused(
            "12-bit JPEG Extended needs the program dcmdjpeg (package dcmtk) on the node, or send it uncompressed",
            code="no-codec",
        )
    buffer = BytesIO()
    bare.save_as(buffer, enforce_file_format=True)
    done = subprocess.run(
        [program, "-", "-"], input=buffer.getvalue(), capture_output=True, check=True, timeout=DCMDJPEG_TIMEOUT_S
    )
    decoded = dcmread(BytesIO(done.stdout))
    values, _ = get_decoder(uid.ExplicitVRLittleEndian).as_array(decoded, raw=True, index=0)
    return values


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until their end; the first line, an empty object, says that the codecs are loaded."""
    _answer(answers, {}, b"")
    while line := requests.readline():
        request = json.loads(line)
        frame = requests.read(request["length"])
        try:
            values = decompress(frame, uid.UID(request["syntax"]), ImagePixel(**request["pixel"]))
            # Widening a signed array extends its sign, and the cast to unsigned keeps the low bits.
            words = values.astype(f"<u{request['pixel']['allocated'] // 8}")
            rows, columns = words.shape
            _answer(answers, {"rows": rows, "columns": columns}, words.tobytes())
        except Refused as refusal:
            _answer(answers, {"refused": str(refusal), "code": refusal.code}, b"")
        except Exception as error:
            # The codecs share no base class; their words go nowhere, since they are about bytes and not about a remedy.
            _answer(answers, {"failed": type(error).__name__}, b"")


def _answer(answers: BinaryIO, head: dict[str, object], data: bytes) -> None:
    answers.write(json.dumps({**head, "length": len(data)}).encode() + b"\n" + data)
    answers.flush()


def main() -> None:
    """Serve standard input and output, within limits that keep a hostile frame from the rest of the node."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's image
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not stand between the answers
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
