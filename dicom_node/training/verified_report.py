"""What a Structured Report that a physician verified says about pneumonia (PS3.3 C.17.2, PS3.16 TID 1500).

Read are coded statements alone, of the form (Pneumonia) = (Present | Absent), as our own reports hold them and a
physician corrects them. Free text is not guessed at, and a Finding that only names pneumonia is not taken as one,
because some systems write it with "Absent" beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset

from dicom_node import malformed
from dicom_node.core.errors import Refused

from .diagnosis import Diagnosis, combined

#: SNOMED CT disorders that stand as name of a statement.
CONDITIONS = {
    ("233604007", "SCT"): Diagnosis.PNEUMONIA,
    ("53084003", "SCT"): Diagnosis.BACTERIAL,
    ("75570004", "SCT"): Diagnosis.VIRAL,
}
#: PS3.16 CID 240.
PRESENT, ABSENT, UNDETERMINED = ("52101004", "SCT"), ("272519000", "SCT"), ("373068000", "SCT")
#: TID 1500 row 12: the statements about the whole study, which count before those about single images.
QUALITATIVE_EVALUATIONS = ("C0034375", "UMLS")
DEEPEST = 32


def diagnosis(report: Dataset) -> Diagnosis | None:
    """Return what a verified report states.

    Parameters
    ----------
    report : Dataset
        An SR document.

    Returns
    -------
    Diagnosis or None
        None where it states nothing about pneumonia, or that it is undetermined.

    Raises
    ------
    Refused
        It is not a complete report that a named physician verified (``unverified``), contradicts itself
        (``contradictory``) or is ``malformed``.
    """
    with malformed.refused("the report"):
        observers = report.get("VerifyingObserverSequence") or ()
        verified = report.get("VerificationFlag") == "VERIFIED" and report.get("CompletionFlag") == "COMPLETE"
        if not verified or not any(one.get("VerificationDateTime") for one in observers):
            raise Refused(
                "the report is not complete and verified by a named observer (Verification Flag (0040,A493), "
                "Verifying Observer Sequence (0040,A073))",
                code="unverified",
            )
        statements = list(_statements(report, whole=False))
        whole = [(condition, value) for condition, value, of_study in statements if of_study]
        return _judge(whole or [(condition, value) for condition, value, _ in statements])


def _judge(statements: list[tuple[Diagnosis, tuple[str, str]]]) -> Diagnosis | None:
    present = {condition for condition, value in statements if value == PRESENT}
    absent = {condition for condition, value in statements if value == ABSENT}
    unsure = any((Diagnosis.PNEUMONIA, value) == (condition, UNDETERMINED) for condition, value in statements)
    if present & absent or (present and Diagnosis.PNEUMONIA in absent) or (unsure and (present or absent)):
        raise Refused("the report contradicts itself about pneumonia: correct it", code="contradictory")
    if not present:
        return Diagnosis.NORMAL if Diagnosis.PNEUMONIA in absent else None
    kind = combined(present)
    if kind is None:
        raise Refused("the report says bacterial and viral at once: correct it", code="contradictory")
    return kind


def _statements(item: Dataset, *, whole: bool, depth: int = 0) -> Iterator[tuple[Diagnosis, tuple[str, str], bool]]:
    """Walk the content tree: condition, presence, and whether it is said about the whole study."""
    if depth > DEEPEST:
        raise Refused("the report is nested too deep", code="malformed")
    for child in item.get("ContentSequence") or ():
        name = _code(child, "ConceptNameCodeSequence")
        if child.get("ValueType") == "CODE" and name in CONDITIONS:
            yield CONDITIONS[name], _code(child, "ConceptCodeSequence"), whole
        below = whole or (depth == 0 and name == QUALITATIVE_EVALUATIONS)
        yield from _statements(child, whole=below, depth=depth + 1)


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    first = (item.get(keyword) or [Dataset()])[0]
    return str(first.get("CodeValue", "")), str(first.get("CodingSchemeDesignator", ""))
