"""Pixels: the same picture gives the same input however it is stored, and what cannot be shown is refused."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, uid
from pydicom.dataelem import DataElement
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from dicom_node import malformed, phantom, pixels
from dicom_node.core.errors import Refused, Unavailable
from tests.conftest import ROOT
from tests.dicomfiles import LOSSLESS_SYNTAXES, radiograph, read

PICTURE = phantom.draw(3, "consolidation", (91, 120))
SHOWN = pixels.from_picture(PICTURE)
DATA = Path(os.environ.get("PNEUMONIA_DATA", ROOT.parent / "shared" / "data"))
REAL_FILES = [
    str(path.relative_to(DATA))
    for folder in ("dicom_chest", "dicom_odd")
    for path in sorted((DATA / folder).rglob("*"))
    if path.is_file() and path.suffix not in (".md", ".csv")
]


def refusal(dataset: Dataset) -> str:
    with pytest.raises(Refused) as caught:
        pixels.from_dataset(dataset)
    assert len(str(caught.value)) > 30
    return caught.value.code


def attempt(dataset: Dataset) -> pixels.NetworkInput | Refused:
    try:
        return pixels.from_dataset(dataset)
    except Refused as refused:
        return refused


# --- one picture, many encodings


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", LOSSLESS_SYNTAXES, ids=lambda syntax: syntax.name)
def test_every_lossless_encoding_of_a_picture_gives_the_same_bits(
    syntax: uid.UID, photometric: Any, bits: Any, tmp_path: Path
) -> None:
    dataset = radiograph(PICTURE, photometric=photometric, bits=bits, transfer_syntax=syntax)
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    result = pixels.from_dataset(pydicom.dcmread(tmp_path / "image.dcm"))
    assert np.array_equal(result.image, SHOWN)
    assert (result.rows, result.columns) == PICTURE.shape
    assert result.rendering.startswith("VOI window 1 of 1 (LINEAR ")
    assert result.rendering.endswith("inverted") == (photometric == "MONOCHROME1")


def test_the_image_comes_out_as_a_square_of_float32_between_0_and_1() -> None:
    assert SHOWN.shape == (pixels.INPUT_SIZE, pixels.INPUT_SIZE)
    assert SHOWN.dtype == np.float32
    assert 0 <= SHOWN.min() < 0.1
    assert 0.8 < SHOWN.max() <= 1


def test_a_training_picture_arrives_unchanged(pneumonia_data: Path) -> None:
    path = next((pneumonia_data / "kermany224" / "train" / "normal").iterdir())
    grey = np.asarray(Image.open(path).convert("L"))
    expected = grey.astype(np.float32) / np.float32(255)
    assert np.array_equal(pixels.from_picture(grey), expected)
    assert np.array_equal(pixels.from_dataset(radiograph(path, bits=12, photometric="MONOCHROME1")).image, expected)


def test_squashing_is_that_of_the_training_pictures_but_for_their_rounding(pneumonia_data: Path) -> None:
    grey = np.asarray(Image.open(pneumonia_data / "kermany_native" / "person1_virus_6.jpeg").convert("L"))
    as_they_did = np.asarray(Image.fromarray(grey).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    off = np.abs(pixels.from_picture(grey) * 255 - as_they_did)
    # Half a grey level from rounding; more only at burned-in letters, where 8 bits clip between the two passes.
    assert off.mean() < 0.5
    assert np.quantile(off, 0.99) < 1.0


def test_signed_values_give_the_same_bits() -> None:
    dataset = radiograph(PICTURE, bits=12)
    shifted = PICTURE.astype(np.int16) * 16 - 2048
    # As bits: 12-bit two's complement, with an overlay's bits above.
    dataset.PixelData = ((shifted.astype(np.uint16) & 0x0FFF) | 0xA000).tobytes()
    dataset.PixelRepresentation, dataset.RescaleIntercept = 1, "2048"
    assert np.array_equal(pixels.from_dataset(dataset).image, SHOWN)


def test_bits_above_bits_stored_are_masked() -> None:
    dataset = radiograph(PICTURE, bits=12)
    dataset.PixelData = ((PICTURE.astype(np.uint16) * 16) | 0x7000).tobytes()
    assert np.array_equal(pixels.from_dataset(dataset).image, SHOWN)


@pytest.mark.parametrize("bits", [8, 12])
def test_big_endian_gives_the_same_bits(bits: Any) -> None:
    dataset = radiograph(PICTURE, bits=bits)
    dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    assert np.array_equal(pixels.from_dataset(dataset).image, SHOWN)


# --- the grey pipeline


def test_the_first_of_several_windows_is_taken_and_recorded() -> None:
    dataset = radiograph(PICTURE)
    dataset.WindowCenter, dataset.WindowWidth = ["128", "40"], ["256", "80"]
    result = pixels.from_dataset(dataset)
    assert np.array_equal(result.image, SHOWN)
    assert result.rendering == "VOI window 1 of 2 (LINEAR 128/256)"


@settings(max_examples=60, deadline=None)
@given(
    centre=st.floats(0, 4095).map(lambda value: round(value, 2)),
    width=st.floats(1.5, 8000).map(lambda value: round(value, 2)),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_windows_are_those_of_pydicom(centre: float, width: float, function: str) -> None:
    dataset = radiograph(np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64), bits=12)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = centre, width, function
    values = np.arange(4096.0)
    ours = pixels._window(values, centre, width, function) + 0.5
    with np.errstate(over="ignore"):  # pydicom's own exp
        assert np.allclose(ours, apply_windowing(np.arange(4096), dataset) / 4095, atol=1e-9)
    # The negative picture under the mirrored window is the negative, to the last bit.
    if function == "LINEAR_EXACT":
        half = round(centre)
        mirrored = pixels._window(-values, -half, width, function)
        assert np.array_equal(mirrored, -pixels._window(values, half, width, function))


def lut(data: NDArray[np.integer[Any]], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data) % 65536, first, bits])
    item.add_new("LUTData", "OW", data.astype("<u2").tobytes())
    return item


def test_a_modality_lut_and_a_voi_lut_are_those_of_pydicom() -> None:
    dataset = radiograph(PICTURE, bits=12)
    del dataset.WindowCenter, dataset.WindowWidth, dataset.RescaleSlope, dataset.RescaleIntercept
    values = PICTURE.astype(np.uint16) * 16
    dataset.ModalityLUTSequence = [lut((np.sqrt(np.arange(4000)) * 500).astype(int), 20, 16)]
    dataset.VOILUTSequence = [lut(np.arange(60000)[::-1] // 15, 100, 12), lut(np.arange(300), 0, 12)]
    expected = apply_voi(apply_modality_lut(values, dataset), dataset) / 4095 * 255
    result = pixels.from_dataset(dataset)
    assert np.allclose(result.image, pixels._squash(expected.astype(np.float32)), atol=1e-6)
    assert result.rendering == "Modality LUT, VOI LUT 1 of 2"


def test_a_lut_may_have_65536_entries_or_bytes_for_entries() -> None:
    negative = edited(ModalityLUTSequence=[lut(np.arange(65536)[::-1], 0, 16)], WindowCenter=None)
    expected = (4095.0 - PICTURE * 16.0 - (4095 - PICTURE.max() * 16.0)) / (np.ptp(PICTURE.astype(int)) * 16) * 255
    assert np.allclose(pixels.from_dataset(negative).image, pixels._squash(expected.astype(np.float32)), atol=1e-6)
    item = lut(np.arange(256), 0, 8)
    item["LUTData"].value = bytes(range(256))
    eight = radiograph(PICTURE)
    del eight.WindowCenter
    eight.VOILUTSequence = [item]
    assert np.array_equal(pixels.from_dataset(eight).image, SHOWN)


def test_without_voi_8_bits_keep_their_range_and_more_bits_are_stretched() -> None:
    narrow = (PICTURE // 2 + 40).astype(np.uint8)
    eight, twelve = radiograph(narrow), radiograph(narrow, bits=12)
    for dataset in (eight, twelve):
        del dataset.WindowCenter, dataset.WindowWidth
    assert np.array_equal(pixels.from_dataset(eight).image, pixels.from_picture(narrow))
    assert (
        pixels.from_dataset(twelve).rendering == f"no VOI, range {int(narrow.min()) * 16} to {int(narrow.max()) * 16}"
    )
    lowest, highest = float(narrow.min()), float(narrow.max())
    stretched = ((narrow - lowest) / (highest - lowest) * 255).astype(np.float32)
    assert np.allclose(pixels.from_dataset(twelve).image, pixels._squash(stretched), atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_stretch_the_picture(photometric: Any) -> None:
    grey = (PICTURE // 2 + 40).astype(np.uint8)
    dataset = radiograph(grey, bits=12, photometric=photometric)
    del dataset.WindowCenter, dataset.WindowWidth
    values = np.frombuffer(dataset.PixelData, np.uint16).reshape(grey.shape).copy()
    values[:, :30] = 5
    values[:, 30:40] = 9
    dataset.PixelData = values.tobytes()
    dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = 9, 5
    result = pixels.from_dataset(dataset)
    seen = grey[:, 40:].astype(float)
    expected = np.zeros(grey.shape, np.float32)
    expected[:, 40:] = (seen - seen.min()) / (seen.max() - seen.min()) * 255
    assert np.allclose(result.image, pixels._squash(expected), atol=1e-6)


def test_a_signed_padding_value_is_found_though_its_tag_is_unsigned() -> None:
    dataset = radiograph(PICTURE, bits=12)
    del dataset.WindowCenter, dataset.WindowWidth
    values = PICTURE.astype(np.int16)
    values[:, :30] = -2000
    dataset.PixelData = values.tobytes()
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 1
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert pixels.from_dataset(dataset).rendering == f"no VOI, range {PICTURE[:, 30:].min()} to {PICTURE[:, 30:].max()}"


# --- what is refused


def edited(**attributes: Any) -> Dataset:
    dataset = radiograph(PICTURE, bits=12)
    for keyword, value in attributes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("dataset", "code"),
    [
        (edited(NumberOfFrames=2), "multi-frame"),
        (edited(PhotometricInterpretation="RGB"), "not-grey"),
        (edited(PhotometricInterpretation="PALETTE COLOR"), "not-grey"),
        (edited(PhotometricInterpretation="YBR_FULL"), "not-grey"),
        (edited(SamplesPerPixel=3), "not-grey"),
        (edited(PresentationIntentType="FOR PROCESSING"), "for-processing"),
        (edited(SOPClassUID=uid.DigitalXRayImageStorageForProcessing), "for-processing"),
        (edited(PixelData=None), "no-pixel-data"),
        (edited(Rows=None), "incomplete-header"),
        (edited(Rows=60000, Columns=60000), "too-large"),
        (edited(Rows=32), "too-small"),
        (edited(BitsAllocated=32), "unsupported-bits"),
        (edited(BitsStored=13, HighBit=11), "unsupported-bits"),
        (edited(PixelData=b"\0" * 100), "broken-pixel-data"),
        (edited(PixelData=b"\0" * (4 * PICTURE.size)), "multi-frame"),
        (edited(PixelData=b"\0" * (2 * PICTURE.size)), "blank-image"),
        (edited(WindowCenter="90000"), "blank-image"),
        (edited(PixelPaddingValue=0, PixelPaddingRangeLimit=65535), "blank-image"),
        (edited(PhotometricInterpretation="MONOCHROME1"), "contradictory-header"),
        (edited(PresentationLUTShape="INVERSE"), "contradictory-header"),
        (edited(WindowWidth="0"), "broken-lut"),
        (edited(WindowWidth="0.5"), "broken-lut"),
        (edited(VOILUTFunction="CUBIC"), "broken-lut"),
        (edited(RescaleSlope="0"), "broken-lut"),
        (edited(ModalityLUTSequence=[]), "broken-lut"),
        (edited(ModalityLUTSequence=[Dataset()]), "broken-lut"),
        (edited(ModalityLUTSequence=[lut(np.arange(64), 0, 4)]), "broken-lut"),
        (edited(WindowCenter=None, VOILUTSequence=[lut(np.arange(5000), 0, 12)]), "broken-lut"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_defined_rendering_is_refused(dataset: Dataset, code: str) -> None:
    assert refusal(dataset) == code


GARBAGE = st.one_of(
    st.none(), st.just(""), st.just([]), st.just(b"\1"), st.integers(-5, 70000), st.text("0A\\.-", max_size=4)
)


@settings(max_examples=150, deadline=None)
@given(
    keyword=st.sampled_from(
        [
            *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
            *("NumberOfFrames", "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept"),
            *("ModalityLUTSequence", "VOILUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelData"),
            *("PhotometricInterpretation", "PresentationLUTShape", "PresentationIntentType", "SOPClassUID"),
        ]
    ),
    value=GARBAGE,
)
def test_garbage_in_any_attribute_ends_as_an_image_or_a_refusal(keyword: str, value: Any) -> None:
    dataset = radiograph(PICTURE, bits=12)
    # LO takes any value, as an attribute of a wrong VR does in a file.
    dataset[keyword] = DataElement(keyword, "LO", value, already_converted=True, validation_mode=0)
    result = attempt(dataset)
    assert len(str(result)) > 30 if isinstance(result, Refused) else np.isfinite(result.image).all()


def test_unforeseen_errors_become_refusals_without_the_values_that_they_quote() -> None:
    with pytest.raises(Refused, match="RecursionError") as caught, malformed.refused("the image"):
        raise RecursionError("Doe^Jane")
    assert "Doe" not in str(caught.value)
    assert caught.value.__cause__ is None
    with malformed.refused("the image"):
        warnings.warn("Invalid value for VR DS: 'Doe^Jane'", stacklevel=1)  # an error anywhere else in this suite
    with pytest.raises(Unavailable), malformed.refused("the image"):
        raise MemoryError


# --- real files


@pytest.mark.parametrize("name", REAL_FILES)
def test_every_real_file_gives_an_image_or_a_refusal(name: str, pneumonia_data: Path) -> None:
    try:
        dataset = read(pneumonia_data / name)
    except OSError:
        assert "undefined_length" in name  # no Dataset at all: the receiver's business
        return
    result = attempt(dataset)
    if isinstance(result, Refused):
        assert str(dataset.get("PatientName") or "nobody") not in str(result)
    else:
        assert result.image.shape == (224, 224)
        assert result.image.min() >= 0
        assert result.image.max() <= 1


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("dicom_chest/dx_chest_mono1_12bit_j2k_lossless_966.dcm", "broken-pixel-data"),
        ("dicom_chest/ot_voi_and_modality_lut_jpegll16.dcm", "broken-lut"),
        ("dicom_odd/pydicom-data/emri_small.dcm", "multi-frame"),
        ("dicom_odd/fo-dicom/genFile.dcm", "broken-pixel-data"),
        ("dicom_odd/fo-dicom/GH1146.dcm", "malformed"),
    ],
)
def test_broken_real_files_are_refused_for_their_own_reason(name: str, code: str, pneumonia_data: Path) -> None:
    assert refusal(read(pneumonia_data / name)) == code


def test_the_repaired_sibling_of_the_truncated_image_is_shown_bright_in_its_mediastinum(pneumonia_data: Path) -> None:
    path = pneumonia_data / "dicom_chest" / "dx_chest_mono1_12bit_j2k_lossless_966_fixed.dcm"
    result = pixels.from_dataset(read(path))
    assert result.rendering == "VOI window 1 of 1 (LINEAR 2048/4096), inverted"
    assert result.image[110:170, 95:130].mean() > result.image[80:140, 45:75].mean() + 0.1


def test_the_two_tags_of_one_rsna_picture_give_negatives(pneumonia_data: Path) -> None:
    first = pixels.from_dataset(read(pneumonia_data / "dicom_chest" / "cr_chest_mono2_8bit_jpeg_baseline_rsna.dcm"))
    second = pixels.from_dataset(read(pneumonia_data / "dicom_chest" / "cr_chest_mono1tag_8bit_jpeg_baseline_rsna.dcm"))
    assert np.allclose(first.image, 1 - second.image, atol=1e-6)
