"""Headers as archives really send them."""

from __future__ import annotations

import io
import struct
import warnings

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.charset import CODES_TO_ENCODINGS
from pydicom.dataset import Dataset

from dicom_node.core.errors import Refused
from secure_infer import report
from tests.secure_infer.report import samples
from tests.secure_infer.report.test_conformance import errors


def raw_file(*elements: tuple[int, bytes, bytes]) -> Dataset:
    """Read back a file that holds a valid image header and `elements` (tag, VR, value) in its place, byte by byte."""
    dataset = samples.source(full=False)
    del dataset.PixelData
    encoded = {int(element.tag): None for element in dataset}
    replaced = {tag: (vr, value) for tag, vr, value in elements}
    body = b""
    for tag in sorted({*encoded, *replaced}):
        if tag in replaced:
            vr, value = replaced[tag]
            value += b" " * (len(value) % 2)
            body += struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
        else:
            single = Dataset()
            single[tag] = dataset[tag]
            file = io.BytesIO()
            pydicom.filewriter.write_dataset(_explicit(file), single)
            body += file.getvalue()
    meta = io.BytesIO()
    pydicom.dcmwrite(meta, _empty(dataset), enforce_file_format=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what is broken on purpose here
        return pydicom.dcmread(io.BytesIO(meta.getvalue() + body))


def _explicit(file: io.BytesIO) -> pydicom.filebase.DicomIO:
    stream = pydicom.filebase.DicomFileLike(file)
    stream.is_little_endian, stream.is_implicit_VR = True, False
    return stream


def _empty(dataset: Dataset) -> Dataset:
    empty = Dataset()
    empty.file_meta = dataset.file_meta
    return empty


def valid_reports(image: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pydicom.Dataset:
    """Both reports of an image, as valid as dciodvfy can tell; returns the first as read back."""
    folder = tmp_path_factory.mktemp("source")
    analysed = [samples.analysed(image, samples.ANSWERS["absent"])]
    for name, dataset in (("data", samples.structured(analysed)), ("text", samples.text(analysed))):
        (folder / name).write_bytes(report.encode(dataset))
        assert errors(folder / name) == []
    return pydicom.dcmread(folder / "data")


NAME, SEX, BIRTH, STUDY_TIME, ACCESSION, CHARACTER_SET = (
    0x00100010, 0x00100040, 0x00100030, 0x00080030, 0x00080050, 0x00080005,
)  # fmt: skip

BROKEN = {
    "undecodable name": [(CHARACTER_SET, b"CS", b"ISO_IR 192"), (NAME, b"PN", b"M\xfcller^J\xfcrgen")],
    "unknown character set": [(CHARACTER_SET, b"CS", b"ISO_IR 999"), (NAME, b"PN", b"M\xfcller^J")],
    "unknown escape sequence": [(CHARACTER_SET, b"CS", b"\\ISO 2022 IR 87"), (NAME, b"PN", b"\x1b$Zxx\x1b(B^y")],
    "escape sequence cut off": [(CHARACTER_SET, b"CS", b"\\ISO 2022 IR 149"), (NAME, b"PN", b"Hong^\x1b$)C\xfb")],
    "control characters": [(NAME, b"PN", b"Do\x00e\x07^J\x1bo")],
    "name without end": [(NAME, b"PN", b"A" * 300)],
    "name of six components and four groups": [(NAME, b"PN", b"a^b^c^d^e^f^g=h=i=j")],
    "sex in words": [(SEX, b"CS", b"female")],
    "date with points": [(BIRTH, b"DA", b"2021.04.05")],
    "impossible date": [(BIRTH, b"DA", b"20210231")],
    "time with colons": [(STUDY_TIME, b"TM", b"12:34:56")],
    "time in words": [(STUDY_TIME, b"TM", b"noon")],
    "accession number too long": [(ACCESSION, b"SH", b"1234567890123456789")],
}  # fmt: skip


@pytest.mark.parametrize("elements", BROKEN.values(), ids=BROKEN)
def test_a_broken_header_still_gives_valid_reports(
    elements: list[tuple[int, bytes, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    valid_reports(raw_file(*elements), tmp_path_factory)


def test_broken_items_of_sequences_are_left_out_or_completed(tmp_path_factory: pytest.TempPathFactory) -> None:
    image = samples.source()
    del image.ProcedureCodeSequence[0].CodeMeaning
    del image.RequestAttributesSequence[0].StudyInstanceUID
    dataset = valid_reports(image, tmp_path_factory)
    assert "ProcedureCodeSequence" not in dataset
    assert dataset.ReferencedRequestSequence[0].StudyInstanceUID == image.StudyInstanceUID


def test_what_can_be_repaired_is_repaired_and_the_rest_left_empty() -> None:
    def header(*elements: tuple[int, bytes, bytes]) -> Dataset:
        return report.normalise(raw_file(*elements))

    assert header((BIRTH, b"DA", b"2021.04.05")).PatientBirthDate == "20210405"
    assert header((BIRTH, b"DA", b"20210231")).PatientBirthDate == ""
    assert header((STUDY_TIME, b"TM", b"12:34:56")).StudyTime == "123456"
    assert header((SEX, b"CS", b"f")).PatientSex == "F"
    assert header((SEX, b"CS", b"female")).PatientSex == ""
    assert header((NAME, b"PN", b"Do\x07e^Jo")).PatientName == "Doe^Jo"


def test_an_identifier_is_never_shortened() -> None:
    assert report.normalise(raw_file((ACCESSION, b"SH", b"12345678901234567"))).AccessionNumber == ""
    assert report.normalise(raw_file((ACCESSION, b"SH", b"1234567890123456"))).AccessionNumber == "1234567890123456"


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("GB18030", next(f"王^{c}" for c in map(chr, range(0x4E00, 0x9FA5)) if c.encode("gb18030")[1:] == b"\\")),
        ("GB18030", next(f"王^{c}" for c in map(chr, range(0x4E00, 0x9FA5)) if c.encode("gb18030")[1:] == b"^")),
        ("\\ISO 2022 IR 87", "Haru=春^太郎"),
    ],
    ids=["backslash", "caret", "equals sign"],
)
def test_a_delimiter_inside_a_double_byte_character_does_not_cut_the_name(character_set: str, name: str) -> None:
    assert report.normalise(samples.source(character_set, name=name)).PatientName == name


def test_the_identity_of_patient_study_and_order_is_copied_and_nothing_private() -> None:
    dataset = samples.structured([samples.analysed(samples.source(name="Müller^Jürgen"), samples.ANSWERS["absent"])])
    image = samples.source()
    keywords = """PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge PatientWeight StudyInstanceUID
        StudyDate StudyTime AccessionNumber StudyID ReferringPhysicianName StudyDescription ProcedureCodeSequence"""
    for keyword in keywords.split():
        assert dataset[keyword].value == image[keyword].value, keyword
    (order,) = dataset.ReferencedRequestSequence
    assert (order.RequestedProcedureID, order.AccessionNumber) == ("RP1", "A2026-17")
    assert "PatientComments" not in dataset
    assert not [element for element in dataset if element.tag.is_private]
    assert dataset.SeriesInstanceUID != image.SeriesInstanceUID


def test_rows_of_a_big_endian_file_are_read_right() -> None:
    image = samples.source()
    del image.PixelData
    file = io.BytesIO()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    pydicom.dcmwrite(file, image, implicit_vr=False, little_endian=False)
    header = report.normalise(pydicom.dcmread(io.BytesIO(file.getvalue()), force=True))
    assert (header.Rows, header.Columns) == (samples.ROWS, samples.COLUMNS)


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "Rows"])
def test_an_image_that_cannot_be_referred_to_is_refused_without_a_word_of_the_patient(keyword: str) -> None:
    image = samples.source(name="Secret^Sarah")
    delattr(image, keyword)
    with pytest.raises(Refused, match=keyword) as refusal:
        report.normalise(image)
    assert "Secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("StudyInstanceUID", "1.02.3"), ("StudyInstanceUID", "9.1"), ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2")],
    ids=["leading zero", "unknown root", "CT"],
)
def test_an_image_with_an_invalid_uid_or_of_another_class_is_refused(keyword: str, value: str) -> None:
    image = samples.source()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(image, keyword, value)
    with pytest.raises(Refused) as refusal:
        report.normalise(image)
    assert value not in str(refusal.value)


FRAGMENTS = st.binary(max_size=8) | st.sampled_from([*CODES_TO_ENCODINGS, b"\x1b", b"\x1b$", b"^", b"=", b"\\"])


@settings(max_examples=300, deadline=None)
@given(
    character_set=st.sampled_from([*samples.NAMES, "", "\\", "ISO_IR 6", "latin1", "ISO 2022 IR 87\\GB18030"]),
    values=st.lists(st.lists(FRAGMENTS, max_size=6).map(b"".join), min_size=4, max_size=4),
)
def test_no_bytes_in_a_header_make_it_fail(character_set: str, values: list[bytes]) -> None:
    tags = ((NAME, b"PN"), (0x00081030, b"LO"), (BIRTH, b"DA"), (0x00101030, b"DS"))
    elements = [(tag, vr, value) for (tag, vr), value in zip(tags, values, strict=True)]
    image = raw_file((CHARACTER_SET, b"CS", character_set.encode()), *elements)
    header = report.normalise(image)
    file = io.BytesIO()
    pydicom.dcmwrite(file, header, implicit_vr=False, little_endian=True)
    again = pydicom.dcmread(io.BytesIO(file.getvalue()), force=True)
    assert str(again.PatientName) == str(header.PatientName)
    assert all(len(group) <= 64 for group in str(again.PatientName).split("="))
    assert len(again.get("StudyDescription", "")) <= 64
