"""De-identification: whatever is planted wherever, nothing but the table's attributes in their legal form comes out."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from pydicom import DataElement, Dataset, Sequence, config
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import tag_for_keyword

from dicom_node import phantom, pixels
from dicom_node.core.errors import Refused
from dicom_node.training import confidentiality
from dicom_node.training.burned_in import has_print
from dicom_node.training.confidentiality import Option
from dicom_node.training.deidentify import deidentify
from dicom_node.training.site_key import SiteKey
from tests import dicomfiles

KEY = SiteKey(bytes(range(32)))
ALL = frozenset(Option)
#: What is planted, by VR: text as such, dates, times and UIDs in their own form.
PLANTED = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), "QUINTESSA^ZYX"),
    "DA": "19470811",
    "DT": "19470811063141",
    "TM": "063141.4711",
    "UI": "1.2.47110815.6",
    "AS": "077Y",
    "DS": "47110815",
    "IS": "47110815",
    "UN": b"QUINTESSA^ZYX ",
    "OB": b"QUINTESSA^ZYX ",
}
TRACES = (b"QUINTESSA", b"19470811", b"4711", b"077Y", b"063141")
TEXTS = ("PN", "UI", "LO", "SH", "DA", "UT", "ST", "LT")
STRICT = {rule.keyword for rule in confidentiality.TABLE if rule.strict}
TAGS = [
    (tag, vr)
    for tag, (vr, _, _, retired, keyword) in sorted(DicomDictionary.items())
    if vr in PLANTED and not retired and tag > 0x0008_0000 and keyword not in STRICT | {"SOPClassUID", "NumberOfFrames"}
]
SEQUENCES = [tag for tag, (vr, *_) in sorted(DicomDictionary.items()) if vr == "SQ" and tag > 0x0008_0000]
#: Tables that say how a picture is shown.
LOOK_UPS = {"ModalityLUTSequence", "VOILUTSequence"}
SIZE = (512, 640)
DECLARED = {
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("LongitudinalTemporalInformationModified",),
}


def radiograph() -> Dataset:
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    return phantom.dataset(np.tile(ramp, (80, 1)), study=phantom.Study.numbered(1, key="deidentify"))


def put(dataset: Dataset, tag: int, vr: str, value: Any) -> None:
    dataset.add(DataElement(tag, vr, value, validation_mode=config.IGNORE))


KNOWN = {tag_for_keyword(rule.keyword) for rule in confidentiality.TABLE}
# Half of them from the table, whose values have to be judged: the others only have to be absent.
elements = st.one_of(st.sampled_from(TAGS), st.sampled_from([(tag, vr) for tag, vr in TAGS if tag in KNOWN]))


@st.composite
def items(draw: st.DrawFn, depth: int = 0) -> Dataset:
    """Attributes of every text VR, private ones and, down to three levels, sequences of the same."""
    item = Dataset()
    for tag, vr in draw(st.lists(elements, max_size=12)):
        put(item, tag, vr, PLANTED[vr])
    if draw(st.booleans()):
        group = draw(st.sampled_from((0x0009, 0x0011, 0x0029, 0x7FE1)))
        put(item, group << 16 | 0x0010, "LO", "QUINTESSA^ZYX")
        put(item, group << 16 | 0x1001, draw(st.sampled_from(("LO", "UN", "OB", "PN"))), b"QUINTESSA^ZYX ".decode())
    if depth < 3:
        for tag in draw(st.lists(st.sampled_from(SEQUENCES), max_size=3)):
            put(item, tag, "SQ", Sequence([draw(items(depth + 1))]))
    return item


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def names(dataset: Dataset) -> set[str]:
    found = set()
    for element in dataset.iterall():
        assert element.keyword, "a private or unknown attribute came through"
        found.add(element.keyword)
    return found


@settings(max_examples=40, deadline=None)
@given(items(), st.sampled_from([frozenset(), ALL]))
def test_nothing_that_is_planted_anywhere_comes_out(planted: Dataset, options: frozenset[Option]) -> None:
    image = radiograph()
    image.update(planted)
    for keyword in ("Rows", "Columns", "BitsAllocated", "PixelData"):  # still an image
        image[keyword] = radiograph()[keyword]
    image.file_meta.SourceApplicationEntityTitle = "QUINTESSA^ZYX"
    image.preamble = b"QUINTESSA^ZYX".ljust(128, b"\0")
    for keyword in ("BurnedInAnnotation", "RecognizableVisualFeatures"):
        if image.get(keyword) == PLANTED["CS"]:
            del image[keyword]
    clean = deidentify(image, KEY, options)
    traces = TRACES if not options else tuple(trace for trace in TRACES if trace != b"077Y")
    assert [trace for trace in traces if trace in encoded(clean).replace(b"\0", b"")] == []
    allowed = {rule.keyword for rule in confidentiality.TABLE} | DECLARED
    assert names(clean) <= allowed
    if LOOK_UPS.isdisjoint(element.keyword for element in planted):  # else it is another picture, or none
        assert np.array_equal(pixels.from_dataset(clean).image, pixels.from_dataset(radiograph()).image)


def test_the_planted_names_would_be_seen_if_they_came_out() -> None:
    image = radiograph()
    for tag, vr in TAGS:
        if tag != 0x00080005:
            put(image, tag, vr, PLANTED[vr])
    assert [trace for trace in TRACES if trace not in encoded(image)] == []


@pytest.mark.parametrize("keyword", sorted(STRICT - {"PhotometricInterpretation"}))
def test_a_name_where_the_picture_needs_a_value_refuses_the_image(keyword: str) -> None:
    image = radiograph()
    vr = image[keyword].VR if keyword in image else "CS"
    image.add(DataElement(keyword, "LO" if vr == "DS" else vr, "QUINTESSA^ZYX", validation_mode=config.IGNORE))
    with pytest.raises(Refused) as caught:
        deidentify(image, KEY)
    assert "QUINTESSA" not in str(caught.value)


def test_uids_and_pseudonyms_are_the_same_within_a_site_and_others_at_another_site() -> None:
    one, again = deidentify(radiograph(), KEY), deidentify(radiograph(), KEY)
    assert encoded(one) == encoded(again)
    other = deidentify(radiograph(), SiteKey(bytes(32)))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"):
        assert len({str(image[keyword].value) for image in (radiograph(), one, other)}) == 3
    assert str(one.SOPInstanceUID) == one.file_meta.MediaStorageSOPInstanceUID
    assert re.fullmatch(r"2\.25\.[1-9]\d*", one.StudyInstanceUID)


def test_options_keep_age_and_sex_and_shift_all_dates_of_a_patient_alike() -> None:
    image = radiograph()
    image.PatientAge, image.PatientSex = "093Y", "F"
    image.StudyDate, image.AcquisitionDate = "20240301", "20240303"
    basic, kept = deidentify(image, KEY), deidentify(image, KEY, ALL)
    assert (basic.PatientSex, basic.StudyDate) == ("", "")
    assert "PatientAge" not in basic
    assert "AcquisitionDate" not in basic
    assert (kept.PatientAge, kept.PatientSex) == ("090Y", "F")
    days = np.datetime64("2024-03-01") - np.datetime64(
        f"{kept.StudyDate[:4]}-{kept.StudyDate[4:6]}-{kept.StudyDate[6:]}"
    )
    assert 1 <= days.astype(int) <= 3650
    assert int(kept.AcquisitionDate) != 20240303
    assert kept.PatientBirthDate == ""
    assert (basic.LongitudinalTemporalInformationModified, kept.LongitudinalTemporalInformationModified) == (
        "REMOVED",
        "MODIFIED",
    )
    assert [code.CodeValue for code in kept.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108"]


@pytest.mark.parametrize(
    ("keyword", "code"), [("BurnedInAnnotation", "burned-in"), ("RecognizableVisualFeatures", "recognizable")]
)
@pytest.mark.parametrize("value", ["YES", "yes", "PERHAPS"])
def test_an_image_that_says_it_shows_a_person_is_refused(keyword: str, code: str, value: str) -> None:
    image = radiograph()
    put(image, tag_for_keyword(keyword), "CS", value)
    with pytest.raises(Refused) as caught:
        deidentify(image, KEY)
    assert caught.value.code == code


def test_bits_above_the_stored_ones_and_bytes_behind_the_picture_are_dropped() -> None:
    grey = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (80, 1))
    image = dicomfiles.radiograph(grey, bits=12)
    plain = np.frombuffer(image.PixelData, "<u2")
    image.PixelData = (plain | 0x8000).tobytes() + b"QUINTESSA "
    assert deidentify(image, KEY).PixelData == plain.tobytes()


def printed(text: str, size: int, fill: int) -> np.ndarray:
    picture = Image.fromarray(phantom.draw(7, phantom.KINDS[0], SIZE))
    at = (30, 30) if fill == 255 else (picture.width // 2 - 60, picture.height - 120)
    ImageDraw.Draw(picture).text(at, text, fill=fill, font=ImageFont.load_default(size))
    return np.asarray(picture)


@pytest.mark.parametrize("kind", phantom.KINDS)
def test_a_phantom_holds_no_print_and_a_side_marker_is_none(kind: Any) -> None:
    assert not has_print(phantom.draw(3, kind, SIZE).astype(np.float32))
    assert not has_print(printed("R", 40, 255).astype(np.float32))


@pytest.mark.parametrize("size", [14, 24, 48])
def test_a_printed_name_is_found_level_and_upright_and_the_image_refused(size: int) -> None:
    picture = printed("MUELLER ANNA 17", size, 255)
    assert has_print(picture.astype(np.float32))
    assert has_print(np.rot90(picture).astype(np.float32))
    with pytest.raises(Refused) as caught:
        deidentify(dicomfiles.radiograph(picture), KEY)
    assert caught.value.code == "burned-in"


def test_real_images_keep_their_picture_and_lose_every_text(pneumonia_data: Path) -> None:
    done = refused = 0
    for path in sorted((pneumonia_data / "dicom_chest").iterdir()):
        if path.is_dir() or path.suffix in (".md", ".csv"):
            continue
        original = dicomfiles.read(path)
        try:
            before = pixels.from_dataset(original).image
            clean = deidentify(original, KEY)
        except Refused:
            refused += 1
            continue
        done += 1
        content = encoded(clean)
        reread = pydicom.dcmread(io.BytesIO(content))
        assert np.array_equal(pixels.from_dataset(reread).image, before), path.name
        header = content[: content.index(reread.PixelData[:64])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            texts = {str(one.value).strip() for one in original.iterall() if one.VR in TEXTS}
        texts = {text for text in texts if len(text) > 5 and not text.startswith("1.2.840.10008.")}
        assert [text for text in texts if text.encode() in header] == [], path.name
    assert done >= 4
    assert refused >= 1


def test_the_result_is_a_conformant_image(tmp_path: Path) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    (tmp_path / "clean.dcm").write_bytes(encoded(deidentify(radiograph(), KEY, ALL)))
    report = subprocess.run([program, tmp_path / "clean.dcm"], capture_output=True, text=True, check=False).stderr
    assert [line for line in report.splitlines() if "Error" in line] == []
