"""Labels from Structured Reports: only what a physician verified, only coded statements; also out of a real Orthanc."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from dicom_node.core.database import label
from dicom_node.core.errors import Refused
from dicom_node.core.settings import OrthancSettings
from dicom_node.demo.orthanc_server import find_orthanc
from dicom_node.orthanc import OrthancClient
from dicom_node.training import collect
from dicom_node.training.diagnosis import Diagnosis
from dicom_node.training.verified_report import ABSENT, PRESENT, QUALITATIVE_EVALUATIONS, UNDETERMINED, diagnosis
from tests.secure_infer.report import samples
from tests.system.orthanc_server import OrthancServer

Code = tuple[str, str]
PNEUMONIA, BACTERIAL, VIRAL = ("233604007", "SCT"), ("53084003", "SCT"), ("75570004", "SCT")


def code(pair: tuple[str, str]) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = *pair, "as coded"
    return [item]


def container(name: tuple[str, str], children: list[Dataset]) -> Dataset:
    item = Dataset()
    item.ValueType, item.ConceptNameCodeSequence, item.ContentSequence = "CONTAINER", code(name), children
    return item


def statement(name: tuple[str, str], value: tuple[str, str]) -> Dataset:
    item = Dataset()
    item.ValueType, item.ConceptNameCodeSequence, item.ConceptCodeSequence = "CODE", code(name), code(value)
    return item


def verify(report: Dataset, at: str = "20260305080000") -> Dataset:
    """Verify a report as a physician's workstation does (PS3.3 C.17.2)."""
    observer = Dataset()
    observer.VerifyingObserverName, observer.VerifyingOrganization = "Reader^Ruth", "Clinic"
    observer.VerificationDateTime = at
    observer.VerifyingObserverIdentificationCodeSequence = []
    report.CompletionFlag, report.VerificationFlag, report.VerifyingObserverSequence = (
        "COMPLETE",
        "VERIFIED",
        [observer],
    )
    return report


def verified(*children: Dataset) -> Dataset:
    report = Dataset()
    report.ContentSequence = list(children)
    return verify(report)


@pytest.mark.parametrize(
    ("answer", "expected"), [("present", Diagnosis.PNEUMONIA), ("absent", Diagnosis.NORMAL), ("undetermined", None)]
)
def test_our_own_report_tells_once_it_is_verified_and_not_before(answer: str, expected: Diagnosis | None) -> None:
    report = samples.structured([samples.analysed(samples.source(), samples.ANSWERS[answer])])
    with pytest.raises(Refused, match="not complete and verified") as caught:
        diagnosis(report)
    assert caught.value.code == "unverified"
    assert diagnosis(verify(report)) == expected


@pytest.mark.parametrize("attribute", ["CompletionFlag", "VerificationFlag", "VerifyingObserverSequence"])
def test_a_report_that_is_only_half_verified_tells_nothing(attribute: str) -> None:
    report = verified(statement(PNEUMONIA, PRESENT))
    delattr(report, attribute)
    with pytest.raises(Refused, match="not complete and verified"):
        diagnosis(report)


STATEMENTS = {
    ((PNEUMONIA, PRESENT),): Diagnosis.PNEUMONIA,
    ((PNEUMONIA, PRESENT), (BACTERIAL, PRESENT)): Diagnosis.BACTERIAL,
    ((PNEUMONIA, PRESENT), (BACTERIAL, ABSENT), (VIRAL, PRESENT)): Diagnosis.VIRAL,
    ((PNEUMONIA, PRESENT), (BACTERIAL, UNDETERMINED)): Diagnosis.PNEUMONIA,
    ((VIRAL, PRESENT),): Diagnosis.VIRAL,
    ((PNEUMONIA, ABSENT), (VIRAL, ABSENT)): Diagnosis.NORMAL,
    ((PNEUMONIA, UNDETERMINED),): None,
    ((VIRAL, ABSENT),): None,  # no virus is not yet healthy
    (): None,
    ((PNEUMONIA, PRESENT), (PNEUMONIA, ABSENT)): "contradictory",
    ((PNEUMONIA, ABSENT), (VIRAL, PRESENT)): "contradictory",
    ((PNEUMONIA, UNDETERMINED), (VIRAL, PRESENT)): "contradictory",
    ((BACTERIAL, PRESENT), (VIRAL, PRESENT)): "contradictory",
}


@pytest.mark.parametrize("said", STATEMENTS)
def test_coded_statements_become_a_label_or_a_refusal(
    said: tuple[tuple[tuple[str, str], tuple[str, str]], ...],
) -> None:
    report = verified(container(("121070", "DCM"), [statement(*one) for one in said]))
    if STATEMENTS[said] == "contradictory":
        with pytest.raises(Refused) as caught:
            diagnosis(report)
        assert caught.value.code == "contradictory"
    else:
        assert diagnosis(report) == STATEMENTS[said]


def test_what_is_said_about_the_study_counts_before_what_is_said_about_its_images() -> None:
    images = container(("126010", "DCM"), [statement(PNEUMONIA, PRESENT), statement(PNEUMONIA, ABSENT)])
    study = container(QUALITATIVE_EVALUATIONS, [statement(PNEUMONIA, PRESENT)])
    assert diagnosis(verified(images, study)) is Diagnosis.PNEUMONIA
    with pytest.raises(Refused, match="contradicts itself"):
        diagnosis(verified(images))


def test_a_report_nested_without_end_is_refused() -> None:
    item = statement(PNEUMONIA, PRESENT)
    for _ in range(40):
        item = container(("121070", "DCM"), [item])
    with pytest.raises(Refused, match="too deep"):
        diagnosis(verified(item))


def test_labels_are_collected_from_the_report_verified_last(hospital) -> None:
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed (Debian package orthanc)")
    image = hospital.take(1)
    hospital.take(2)
    source = samples.source()
    source.StudyInstanceUID = image.StudyInstanceUID
    answers = samples.ANSWERS
    unverified = samples.structured([samples.analysed(source, answers["present"])], seed="ai")
    early = verify(samples.structured([samples.analysed(source, answers["present"])], seed="1"), at="20260305080000")
    late = verify(samples.structured([samples.analysed(source, answers["absent"])], seed="2"), at="20260306080000")
    with OrthancServer() as server, OrthancClient(OrthancSettings(url=server.url)) as client:
        for report in (late, early, unverified):
            server.upload(samples.part10(report))
        found = collect.find(hospital.database, client, lambda done, total: None)
    assert (found.said, found.refused, found.unverified) == ({1: Diagnosis.NORMAL}, 0, 1)
    with hospital.database.write() as connection:
        assert collect.record(connection, found, "test", 1.0) == (1, 0)
    assert [(row.study_id, row.source, row.value) for row in hospital.rows(label)] == [(1, "verified-report", "normal")]
    with hospital.database.write() as connection:
        assert collect.record(connection, collect.Found({1: None}, 0, 0), "test", 2.0) == (0, 1)
    assert hospital.rows(label) == []
