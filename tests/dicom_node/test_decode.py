"""Decoding: every codec gives the stored values, and no broken frame takes the node along."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset, uid
from pydicom.encaps import get_frame

from dicom_node import phantom, pixels
from dicom_node.core.errors import Refused, Unavailable
from dicom_node.pixels import codec_process, codestream, decode, decompress, image_pixel
from tests.dicomfiles import LOSSLESS_SYNTAXES, compressed, jpeg_lossless, radiograph, read

PICTURE = phantom.draw(3, "consolidation", (91, 120))
SHOWN = pixels.from_picture(PICTURE)


def refusal(dataset: Dataset) -> str:
    with pytest.raises(Refused) as caught:
        pixels.from_dataset(dataset)
    return caught.value.code


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1])
def test_jpeg_lossless_gives_the_same_bits(syntax: uid.UID) -> None:
    frame = jpeg_lossless(PICTURE.astype(np.uint16) * 16, 12)
    dataset = compressed(frame, syntax, radiograph(PICTURE, bits=12))
    assert np.array_equal(pixels.from_dataset(dataset).image, SHOWN)


def test_codecs_of_jpeg_2000_agree_bit_for_bit() -> None:
    dataset = radiograph(PICTURE, bits=12, transfer_syntax=uid.JPEG2000Lossless)
    ours = decode.words(dataset, image_pixel.read(dataset))
    for plugin in ("gdcm", "pillow"):
        theirs, _ = pydicom.pixels.get_decoder(uid.JPEG2000Lossless).as_array(dataset, raw=True, decoding_plugin=plugin)
        assert np.array_equal(ours, theirs)


def test_lossy_jpeg_is_close() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "JPEG", quality=95)
    dataset = compressed(buffer.getvalue(), uid.JPEGBaseline8Bit, radiograph(PICTURE))
    assert np.abs(pixels.from_dataset(dataset).image - SHOWN).mean() < 0.01


@pytest.mark.parametrize("syntax", [*LOSSLESS_SYNTAXES[3:], uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_stream_is_refused(syntax: uid.UID, kept: float) -> None:
    dataset = radiograph(PICTURE, bits=8)
    if syntax == uid.JPEGLosslessSV1:
        frame = jpeg_lossless(PICTURE, 8)
    elif syntax == uid.JPEGBaseline8Bit:
        buffer = io.BytesIO()
        Image.fromarray(PICTURE).save(buffer, "JPEG")
        frame = buffer.getvalue()
    else:
        frame = get_frame(radiograph(PICTURE, transfer_syntax=syntax).PixelData, 0, number_of_frames=1)
    assert refusal(compressed(frame[: int(kept * len(frame))], syntax, dataset)) in ("broken-pixel-data", "malformed")


def test_a_stream_of_another_size_or_colour_is_refused_before_it_is_decoded() -> None:
    frame = get_frame(radiograph(PICTURE, transfer_syntax=uid.JPEG2000Lossless).PixelData, 0, number_of_frames=1)
    assert codestream.code_stream(frame) == codestream.CodeStream(91, 120, 1, 8, False)
    grown = frame.replace((91).to_bytes(4), (60_000).to_bytes(4), 1)
    assert codestream.code_stream(grown).rows == 60_000
    assert refusal(compressed(grown, uid.JPEG2000Lossless, radiograph(PICTURE))) == "broken-pixel-data"
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([PICTURE] * 3)).save(buffer, "JPEG")
    assert refusal(compressed(buffer.getvalue(), uid.JPEGBaseline8Bit, radiograph(PICTURE))) == "not-grey"


def test_an_unknown_codec_is_named_and_a_private_one_is_not_repeated() -> None:
    dataset = radiograph(PICTURE)
    dataset.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    with pytest.raises(Refused, match="MPEG2 Main Profile") as caught:
        pixels.from_dataset(dataset)
    assert caught.value.code == "no-codec"
    dataset.file_meta.TransferSyntaxUID = uid.UID("1.2.3.4.5678")
    with pytest.raises(Refused, match="a private one") as caught:
        pixels.from_dataset(dataset)
    assert "5678" not in str(caught.value)


def test_without_dcmdjpeg_12_bit_jpeg_extended_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    child = codec_process.CodecProcess()
    frame = jpeg_lossless(PICTURE.astype(np.uint16) * 16, 12).replace(b"\xff\xc3", b"\xff\xc1", 1)
    with pytest.raises(Refused, match="dcmdjpeg") as caught:
        child.decompress(frame, uid.JPEGExtended12Bit, image_pixel.read(radiograph(PICTURE, bits=12)))
    child.close()
    assert caught.value.code == "no-codec"


def test_a_frame_that_hangs_its_codec_is_refused_and_the_next_one_is_decoded() -> None:
    child = codec_process.CodecProcess(timeout_s=1.0)
    dataset = radiograph(PICTURE, transfer_syntax=uid.JPEGLSLossless)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    pixel = image_pixel.read(dataset)
    with pytest.raises(Refused, match="truncated or broken"):
        child.decompress(frame[: len(frame) // 2 + 1], uid.JPEGLSLossless, pixel)
    assert np.array_equal(child.decompress(frame, uid.JPEGLSLossless, pixel), PICTURE)
    child.close()


def test_a_frame_that_crashes_its_codec_is_refused_and_the_next_one_is_decoded() -> None:
    frame = jpeg_lossless(PICTURE, 8)
    deadly = frame.replace(b"\xff\xc4", b"\xff\x00", 1)  # no Huffman table: GDCM 3.2 aborts
    child = codec_process.CodecProcess()
    pixel = image_pixel.read(radiograph(PICTURE))
    first = child._start()
    with pytest.raises(Refused, match="truncated or broken"):
        child.decompress(deadly, uid.JPEGLosslessSV1, pixel)
    assert first.returncode in (-6, -11), "the codec survives by now: find another deadly frame"
    assert np.array_equal(child.decompress(frame, uid.JPEGLosslessSV1, pixel), PICTURE)
    child.close()


def test_a_codec_killed_from_outside_is_no_fault_of_the_image() -> None:
    child = codec_process.CodecProcess()
    pixel = image_pixel.read(radiograph(PICTURE))
    child._start().kill()
    with pytest.raises(Unavailable):
        child.decompress(jpeg_lossless(PICTURE, 8), uid.JPEGLosslessSV1, pixel)
    child.close()


def test_high_throughput_jpeg_2000_decodes(pneumonia_data: Path) -> None:
    dataset = read(pneumonia_data / "dicom_odd" / "pydicom-data" / "HTJ2K_08_RGB.dcm")
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    pixel = image_pixel.ImagePixel(480, 640, 8, 8, False, "MONOCHROME2")
    assert decompress.decompress(frame, uid.HTJ2K, pixel).shape == (480, 640, 3)


def test_12_bit_jpeg_extended_decodes_where_dcmdjpeg_is_installed(pneumonia_data: Path) -> None:
    dataset = read(pneumonia_data / "dicom_chest" / "notchest" / "cr_hip_RG2_JPLY_fixed.dcm")
    if shutil.which("dcmdjpeg"):
        assert pixels.from_dataset(dataset).rendering == "VOI window 1 of 1 (LINEAR 511/1024)"
    else:
        assert refusal(dataset) == "no-codec"
