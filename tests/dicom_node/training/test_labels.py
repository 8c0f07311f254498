"""Labels from lists, and whom the site may train with: whole lists or nothing, one study per patient."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.__main__ import app
from dicom_node.core.database import audit_event, consent, label
from dicom_node.training import consent as decisions
from dicom_node.training import eligible, labels
from dicom_node.training.consent import Change, Decision
from dicom_node.training.diagnosis import Diagnosis, combined
from dicom_node.training.lists import FaultyList


def take_over(hospital, file: Path, text: str, **options: bool) -> labels.Outcome:
    file.write_text(text)
    lines = labels.read_list(file, hospital.names)
    with hospital.database.write() as connection:
        return labels.record_list(connection, lines, "test", 5000.0, **options)


def agree(hospital, *numbers: int) -> None:
    changes = [Change(hospital.names.patient(f"PHANTOM-{number}", ""), Decision.GIVEN) for number in numbers]
    with hospital.database.write() as connection:
        decisions.record(connection, changes, "test", 5000.0)


def rows(hospital) -> list[tuple[int, str]]:
    with hospital.database.read() as connection:
        return sorted((one.study_id, str(one.label)) for one in eligible.patients(connection, 6000.0))


def test_studies_are_labelled_by_uid_or_accession_number_and_once_more_changes_nothing(hospital, tmp_path) -> None:
    first = hospital.take(1)
    hospital.take(2)
    hospital.refresh()
    text = f"StudyInstanceUID,AccessionNumber,Label\n{first.StudyInstanceUID},,Normal\n,PHANTOM-A2,bacterial\n"
    assert take_over(hospital, tmp_path / "l.csv", text) == labels.Outcome(2, 0, 0, ())
    assert take_over(hospital, tmp_path / "l.csv", text) == labels.Outcome(0, 0, 2, ())
    assert [(row.study_id, row.value) for row in hospital.rows(label)] == [(1, "normal"), (2, "bacterial")]
    noted = [row for row in hospital.rows(audit_event) if row.event_type == "label-recorded"]
    assert [(row.study_id, row.detail) for row in noted] == [(1, {"source": "list"}), (2, {"source": "list"})]


FAULTS = {
    "AccessionNumber,Label\nPHANTOM-A1,healthy\n": "line 2: Label must be one of normal, bacterial, viral, pneumonia",
    "AccessionNumber,Label\nPHANTOM-A1,normal\nPHANTOM-A1,normal\n": "line 3: line 2 gives the same label to the same",
    "AccessionNumber,Label\nPHANTOM-A1,normal\nPHANTOM-A1,viral\n": "line 3: line 2 gives another label to the same",
    "AccessionNumber,Label\nPHANTOM-A2,normal\nELSEWHERE,viral\n": "line 3: no such study was received",
    "AccessionNumber,Label\nPHANTOM-A1,viral\n": "line 2: an earlier list gives this study another label",
    "AccessionNumber,Label\nTWICE,viral\n": "line 2: several studies have this accession number",
    "StudyInstanceUID,Label\n1.2.x,viral\n": "line 2: its StudyInstanceUID is not a UID",
    "StudyInstanceUID,AccessionNumber,Label\n1.2,PHANTOM-A1,viral\n": "line 2: it must name exactly one",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_list_with_any_fault_changes_nothing(hospital, tmp_path: Path, text: str) -> None:
    for number in (1, 2):
        hospital.take(number)
    for number in (3, 4):
        hospital.take(number, AccessionNumber="TWICE")
    hospital.refresh()
    if "earlier" in FAULTS[text]:
        take_over(hospital, tmp_path / "first.csv", "AccessionNumber,Label\nPHANTOM-A1,normal\n")
    before = hospital.rows(label)
    with pytest.raises(FaultyList) as caught:
        take_over(hospital, tmp_path / "l.csv", text)
    assert FAULTS[text] in str(caught.value)
    assert hospital.rows(label) == before


def test_a_worklist_may_name_more_than_was_received_and_a_corrected_list_may_replace(hospital, tmp_path) -> None:
    hospital.take(1)
    hospital.refresh()
    text = "AccessionNumber,Label\nELSEWHERE,viral\nPHANTOM-A1,normal\n"
    assert take_over(hospital, tmp_path / "l.csv", text, skip_unknown=True) == labels.Outcome(1, 0, 0, (2,))
    text = "AccessionNumber,Label\nPHANTOM-A1,viral\n"
    assert take_over(hospital, tmp_path / "l.csv", text, replace=True) == labels.Outcome(0, 1, 0, ())


def test_a_kind_refines_pneumonia_and_everything_else_contradicts() -> None:
    kinds = {Diagnosis.BACTERIAL, Diagnosis.VIRAL}
    for number in range(5):
        for said in itertools.combinations(Diagnosis, number):
            found = combined(said)
            if len(said) == 1 or (len(said) == 2 and Diagnosis.PNEUMONIA in said and kinds & set(said)):
                assert found == next((one for one in said if one in kinds), said[0])
            else:
                assert found is None, said


def test_one_row_per_patient_who_agreed_the_newest_labelled_study_and_none_that_is_contradicted(hospital) -> None:
    for number, key in ((1, "old"), (1, "new"), (1, "unlabelled"), (2, "old"), (3, "old"), (4, "old")):
        hospital.take(number, key=key)
    hospital.refresh()
    agree(hospital, 1, 2, 3)
    with hospital.database.write() as connection:
        for study_id, value in ((1, "normal"), (2, "pneumonia"), (4, "normal"), (5, "viral"), (6, "viral")):
            labels.put(connection, study_id, labels.LIST, Diagnosis(value), "test", 1.0)
        labels.put(connection, 2, labels.VERIFIED_REPORT, Diagnosis.VIRAL, "test", 1.0)
        labels.put(connection, 4, labels.VERIFIED_REPORT, Diagnosis.VIRAL, "test", 1.0)
    # Patient 1: study 2 is newer than study 1, study 3 has no label. 2 is contradicted. 4 never agreed.
    assert rows(hospital) == [(2, "viral"), (5, "viral")]
    with hospital.database.write() as connection:
        opt_out = Change(hospital.names.patient("PHANTOM-3", ""), Decision.WITHDRAWN)
        decisions.record(connection, [opt_out], "test", 5500.0)
    assert rows(hospital) == [(2, "viral")]


def command(hospital, *words: str, typed: str = "") -> str:
    result = CliRunner().invoke(app, [*words, "--config", str(hospital.config)], input=typed)
    if isinstance(result.exception, SystemExit) or result.exception is None:
        return result.output
    raise result.exception


def test_the_commands_record_show_and_withdraw_and_a_dry_run_leaves_no_trace(hospital, tmp_path: Path) -> None:
    hospital.take(1)
    hospital.take(2)
    agreed, labelled = tmp_path / "consent.csv", tmp_path / "labels.csv"
    agreed.write_text("PatientID,Consent\nPHANTOM-1,yes\nPHANTOM-2,yes\nABSENT,no\n")
    labelled.write_text("AccessionNumber,Label\nPHANTOM-A1,normal\n")
    assert "dry run: 2 agreed, 1 opted out" in command(hospital, "consent", "import", str(agreed), "--dry-run")
    assert "dry run: 1 new labels" in command(hospital, "labels", "import", str(labelled), "--dry-run")
    assert hospital.rows(consent) == hospital.rows(label) == []
    assert "lines cover no study received so far: 4" in command(hospital, "consent", "import", str(agreed))
    assert "1 new labels" in command(hospital, "labels", "import", str(labelled))
    shown = command(hospital, "consent", "show", "--by", "patient", typed="PHANTOM-1\n\n")
    assert "this patient: given" in shown
    assert "2 studies of 2 patients may be used; 1 of these patients are labelled" in shown
    assert "Recorded: withdrawn" in command(hospital, "consent", "withdraw", typed="PHANTOM-1\n\n")
    assert "1 studies of 1 patients may be used; 0 of" in command(hospital, "consent", "show")
    assert "Recorded: given" in command(hospital, "consent", "set", "--until", "2100-01-01", typed="PHANTOM-1\n\n")
    assert "2 studies of 2 patients may be used; 1 of" in command(hospital, "consent", "show")
    assert "normal" in command(hospital, "labels", "show")
