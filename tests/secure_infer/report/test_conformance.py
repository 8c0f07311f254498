"""The reports against the standard's own validator and dictionary, over character sets, answers and kinds of header."""

from __future__ import annotations

import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import ComputedRadiographyImageStorage

from dicom_node import scu
from dicom_node.core.errors import Refused
from secure_infer import report
from secure_infer.report import codes
from tests.secure_infer.report import samples

#: Every code and meaning of the dictionary that pydicom builds from PS3.16.
DICTIONARY = {
    (code, scheme, meaning)
    for scheme, keywords in concepts.items()
    for entries in keywords.values()
    for code, (meaning, _) in entries.items()
}
#: The pairs that no context group names, looked up in SNOMED CT, UMLS, RFC 5646 and PS3.16's templates by hand.
OWN = {
    ("233604007", "SCT", "Pneumonia"),
    ("53084003", "SCT", "Bacterial pneumonia"),
    ("75570004", "SCT", "Viral pneumonia"),
    ("C0034375", "UMLS", "Qualitative Evaluations"),
    ("en-US", "RFC5646", "English (United States)"),
    ("260753009", "SCT", "Source"),
}


def _reports() -> Iterator[tuple[str, Dataset]]:
    for character_set, name in samples.NAMES.items():
        for full in (True, False):
            image = samples.source(character_set, full=full, name=name)
            for word, answer in samples.ANSWERS.items():
                analysed = [samples.analysed(image, answer)]
                label = f"{character_set.strip(chr(92))} {'DX' if full else 'CR'} {word}".replace(" ", "-")
                yield f"{label}-data", samples.structured(analysed)
                yield f"{label}-text", samples.text(analysed)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both reports of every character set, answer and kind of header, by a name that tells them apart."""
    folder = tmp_path_factory.mktemp("reports")
    files = {}
    for label, dataset in _reports():
        files[label] = folder / f"{label}.dcm"
        files[label].write_bytes(report.encode(dataset))
    assert len(files) == len(samples.NAMES) * 2 * 3 * 2
    assert len(samples.NAMES) >= 11
    return files


def walk(item: Dataset) -> Iterator[Dataset]:
    """Every item of every sequence of a dataset, and the dataset."""
    yield item
    for element in item:
        if element.VR == "SQ":
            for child in element.value:
                yield from walk(child)


def errors(path: Path) -> list[str]:
    """What dciodvfy calls an error in a file; it must have recognised the kind of document, too."""
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace", check=False)
    assert any(kind in done.stderr.split() for kind in ("Comprehensive3DSR", "ComprehensiveSR", "EnhancedSR")), (
        done.stderr
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_dciodvfy_finds_no_error_in_any_report(written: dict[str, Path]) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(written, pool.map(errors, written.values()), strict=True))
    assert {label: lines for label, lines in found.items() if lines} == {}


def test_dciodvfy_finds_an_error_where_there_is_one(written: dict[str, Path], tmp_path: Path) -> None:
    broken = pydicom.dcmread(next(iter(written.values())))
    del broken.CompletionFlag
    broken.save_as(tmp_path / "broken.dcm")
    assert errors(tmp_path / "broken.dcm")


def test_names_survive_in_every_character_set(written: dict[str, Path]) -> None:
    for character_set, name in samples.NAMES.items():
        label = character_set.strip("\\").replace(" ", "-")
        for kind in ("DX-present-data", "CR-absent-text"):
            dataset = pydicom.dcmread(written[f"{label}-{kind}"])
            assert dataset.SpecificCharacterSet == "ISO_IR 192"
            assert str(dataset.PatientName) == name


def test_every_code_is_in_the_dictionary_or_on_the_named_list(written: dict[str, Path]) -> None:
    used = Counter(
        (str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))
        for label, path in written.items()
        if "ISO_IR-100" in label
        for item in walk(pydicom.dcmread(path))
        if "CodeValue" in item
    )
    inherited = ("36643-5", "LN", "XR Chest 2 Views")  # of the source image
    assert set(used) - DICTIONARY - OWN - {inherited} == set()
    assert set(used) >= OWN, "the named list holds no code that is not used"
    assert {(code.value, code.scheme_designator, code.meaning) for code in codes.OUTSIDE_DICTIONARY} == OWN
    assert set() == OWN & DICTIONARY, "the named list holds no code that the dictionary has"


def test_no_negative_or_undetermined_report_names_pneumonia_as_a_value(written: dict[str, Path]) -> None:
    for label, path in written.items():
        for item in walk(pydicom.dcmread(path)):
            for value in item.get("ConceptCodeSequence", []):
                assert "neumonia" not in value.CodeMeaning, label
            name = item.get("ConceptNameCodeSequence", [{}])[0]
            if "present" not in label and name.get("CodeValue") == "121071":
                assert item.ValueType == "TEXT", label
                assert "finds signs" not in item.TextValue, label


def test_every_container_holds_separate_items(written: dict[str, Path]) -> None:
    for path in written.values():
        for item in walk(pydicom.dcmread(path)):
            if item.get("ValueType") == "CONTAINER":
                assert item.ContinuityOfContent == "SEPARATE"


def test_the_comprehensive_sr_that_older_destinations_get_is_valid(tmp_path: Path) -> None:
    newer = samples.structured([samples.analysed(samples.source(), samples.ANSWERS["present"])])
    older = scu.as_comprehensive_sr(newer)
    (tmp_path / "older.dcm").write_bytes(report.encode(older))
    assert errors(tmp_path / "older.dcm") == []
    assert older.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"
    assert older.ContentSequence == newer.ContentSequence


def test_a_report_on_several_images_that_replaces_another_is_valid(tmp_path: Path) -> None:
    earlier = samples.structured(
        [samples.analysed(samples.source(key="m1"), samples.ANSWERS["absent"])], seed="earlier"
    )
    predecessor = report.Predecessor(earlier.SOPClassUID, earlier.SOPInstanceUID, earlier.SeriesInstanceUID)
    images = [samples.analysed(samples.source(key=key), samples.ANSWERS["present"]) for key in ("m1", "m2")]
    for write in (samples.structured, samples.text):
        (tmp_path / "report.dcm").write_bytes(report.encode(write(images, predecessor=predecessor)))
        assert errors(tmp_path / "report.dcm") == []


def test_real_and_malformed_files_end_in_valid_reports_or_refusals(pneumonia_data: Path, tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    answer = samples.ANSWERS["absent"]
    for path in sorted((*pneumonia_data.glob("dicom_chest/**/*"), *pneumonia_data.glob("dicom_odd/**/*"))):
        dataset = _header(path)
        if dataset is None:
            continue
        if "SOPClassUID" in dataset:  # every header is tried, as if it came with a radiograph
            dataset.SOPClassUID = ComputedRadiographyImageStorage
        try:
            image = report.AnalysedImage(dataset, answer, report.Region.box(0, 0, 1, 1, "analysed area"))
        except Refused:
            ends["refused"] += 1
            continue
        for number, write in enumerate((samples.structured, samples.text)):
            written = tmp_path / f"{number}.dcm"
            written.write_bytes(report.encode(write([image])))
            assert errors(written) == [], path.name
        ends["valid"] += 1
    assert ends["valid"] >= 60
    assert ends["refused"] >= 1


def _header(path: Path) -> Dataset | None:
    """What pydicom can read of a file; reading broken files is the receiver's business."""
    if not path.is_file() or path.suffix in {".csv", ".md", ".txt", ".json"}:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(path, force=True, stop_before_pixels=True)
    except Exception:
        return None
