"""Consent: silence means no, an opt-out wins at once, and no identifier of a patient stays in the records."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dicom_node.core import audit
from dicom_node.core.database import audit_event, consent
from dicom_node.core.errors import ConfigError
from dicom_node.training import consent as room
from dicom_node.training.consent import Change, Decision, Outcome
from dicom_node.training.lists import FaultyList
from dicom_node.training.site_key import open_key
from dicom_node.training.subjects import Subject

GIVEN, WITHDRAWN = Decision.GIVEN, Decision.WITHDRAWN


def decide(hospital, *changes: Change, now: float = 5000.0, allow_reversal: bool = False) -> Outcome:
    with hospital.database.write() as connection:
        return room.record(connection, changes, "test", now, allow_reversal=allow_reversal)


def agreed(hospital, now: float = 6000.0) -> set[int]:
    with hospital.database.read() as connection:
        return {row.study_id for row in room.eligible(connection, now)}


def listed(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_nobody_is_trained_with_unasked(hospital) -> None:
    hospital.take(1)
    hospital.refresh()
    assert agreed(hospital) == set()


@pytest.mark.parametrize("kind", ["patient", "study", "accession"])
def test_an_agreement_by_any_identifier_covers_the_study_until_it_is_withdrawn(hospital, kind: str) -> None:
    image = hospital.take(1)
    hospital.take(2)
    hospital.refresh()
    names = hospital.names
    who = {
        "patient": names.patient(f" {image.PatientID} ", ""),
        "study": names.study(image.StudyInstanceUID),
        "accession": names.accession(image.AccessionNumber),
    }[kind]
    decide(hospital, Change(who, GIVEN))
    assert agreed(hospital) == {1}
    decide(hospital, Change(who, WITHDRAWN))
    assert agreed(hospital) == set()


def test_an_opt_out_by_any_identifier_wins_over_agreements_by_all_others(hospital) -> None:
    image = hospital.take(1)
    hospital.refresh()
    names = hospital.names
    everyone: list[Subject] = [
        names.patient(image.PatientID, ""),
        names.study(image.StudyInstanceUID),
        names.accession(image.AccessionNumber),
    ]
    for decisions in itertools.product((GIVEN, WITHDRAWN), repeat=3):
        changes = [Change(who, decision) for who, decision in zip(everyone, decisions, strict=True)]
        decide(hospital, *changes, allow_reversal=True)
        assert agreed(hospital) == (set() if WITHDRAWN in decisions else {1}), decisions


def test_an_opt_out_counts_under_every_issuer_and_an_agreement_under_its_own_alone(hospital) -> None:
    hospital.take(1, IssuerOfPatientID="Clinic A")
    hospital.refresh()
    decide(hospital, Change(hospital.names.patient("PHANTOM-1", "Clinic B"), GIVEN))
    assert agreed(hospital) == set()
    decide(hospital, Change(hospital.names.patient("PHANTOM-1", "Clinic A"), GIVEN))
    assert agreed(hospital) == {1}
    decide(hospital, Change(hospital.names.patient("PHANTOM-1", ""), WITHDRAWN))
    assert agreed(hospital) == set()


def test_an_agreement_ends_when_it_said_so(hospital) -> None:
    hospital.take(1)
    hospital.refresh()
    decide(hospital, Change(hospital.names.patient("PHANTOM-1", ""), GIVEN, expires_at=7000.0))
    assert agreed(hospital, now=6999.0) == {1}
    assert agreed(hospital, now=7000.0) == set()


def test_a_study_that_changed_is_left_out_until_it_was_looked_at_again(hospital) -> None:
    hospital.take(1)
    hospital.refresh()
    decide(hospital, Change(hospital.names.patient("PHANTOM-1", ""), GIVEN))
    hospital.take(1, image=2)
    assert agreed(hospital) == set()
    assert hospital.refresh() == 1
    assert agreed(hospital) == {1}


@pytest.mark.parametrize("other", [{"PatientID": ""}, {"PatientID": "SOMEBODY-ELSE"}, {"AccessionNumber": "OTHER"}])
def test_a_study_whose_images_disagree_on_whom_they_show_is_never_trained_with(hospital, other) -> None:
    image = hospital.take(1)
    hospital.take(1, image=2, **other)
    hospital.refresh()
    decide(
        hospital,
        Change(hospital.names.patient("PHANTOM-1", ""), GIVEN),
        Change(hospital.names.study(image.StudyInstanceUID), GIVEN),
    )
    assert agreed(hospital) == set()


def test_a_list_never_reverses_an_opt_out_and_then_changes_nothing_at_all(hospital, tmp_path: Path) -> None:
    hospital.take(1)
    hospital.take(2)
    hospital.refresh()
    decide(hospital, Change(hospital.names.patient("PHANTOM-2", ""), WITHDRAWN))
    file = listed(tmp_path / "list.csv", "PatientID,Consent\nPHANTOM-1,yes\nPHANTOM-2,yes\n")
    with pytest.raises(FaultyList, match="line 3: this patient opted out"):
        decide(hospital, *room.read_list(file, hospital.names))
    assert agreed(hospital) == set()
    assert len(hospital.rows(consent)) == 1


def test_a_list_is_read_with_byte_order_mark_and_semicolons_and_lines_without_a_study_are_told(
    hospital, tmp_path: Path
) -> None:
    hospital.take(1)
    hospital.refresh()
    text = "\ufeffPatientID;IssuerOfPatientID;AccessionNumber;Consent;Until\r\n"
    text += "PHANTOM-1;;;yes;2100-12-31\r\n\r\n;;PHANTOM-A1;Yes;\r\nUNHEARD-OF;X;;NO;\r\n"
    changes = room.read_list(listed(tmp_path / "list.csv", text), hospital.names)
    assert decide(hospital, *changes) == Outcome(2, 1, 0, (5,))
    assert decide(hospital, *changes) == Outcome(0, 0, 3, (5,))
    assert agreed(hospital) == {1}


FAULTS = {
    "PatientID,Consent\nA,perhaps\n": "line 2: Consent must be yes or no",
    "PatientID,AccessionNumber,Consent\nA,B,yes\n": "line 2: it must name exactly one",
    "PatientID,Consent\n,yes\n": "line 2: it must name exactly one",
    "PatientID,Consent\nA,yes\nB,yes\nA,no\n": "line 4: line 2 decides about the same patient already",
    "PatientID,Consent,Until\nA,yes,31.12.2027\n": "line 2: Until must be a date",
    "PatientID,Consent,Until\nA,no,2027-12-31\n": "line 2: an opt-out has no end",
    "AccessionNumber,IssuerOfPatientID,Consent\nA,B,yes\n": "line 2: IssuerOfPatientID belongs to a PatientID",
    "PatientID\nA\n": "line 1: the header lacks Consent",
    "PatientId,Consent\nA,yes\n": "line 1: column 1 of the header is none of",
    "PatientID,Consent,Consent\nA,yes,yes\n": "line 1: the header names a column twice",
    "PatientID,Consent\nA,yes,no\n": "line 2: it has 3 fields where the header has 2",
    'PatientID,Consent\n"A,yes\n': "its quotes do not match",
    "": "line 1: the header lacks Consent",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_faulty_list_is_refused_with_line_and_reason_and_without_its_values(hospital, tmp_path, text: str) -> None:
    with pytest.raises(FaultyList) as caught:
        room.read_list(listed(tmp_path / "list.csv", text.replace("A,", "SECRET,")), hospital.names)
    assert FAULTS[text] in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_list_in_another_encoding_is_refused_with_the_line(hospital, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes("PatientID,Consent\nA,yes\nMÜLLER,no\n".encode("latin-1"))
    with pytest.raises(FaultyList, match="line 3: this is not UTF-8"):
        room.read_list(file, hospital.names)


def test_every_change_is_audited_and_neither_trail_nor_records_hold_an_identifier(hospital, tmp_path: Path) -> None:
    hospital.take(1, PatientID="TELLING-4711", AccessionNumber="TELLING-0815")
    hospital.refresh()
    who = hospital.names.patient("TELLING-4711", "")
    decide(hospital, Change(who, GIVEN), Change(hospital.names.accession("TELLING-0815"), GIVEN))
    decide(hospital, Change(who, WITHDRAWN))
    kinds = [row.event_type for row in hospital.rows(audit_event) if row.event_type.startswith("consent")]
    assert kinds == ["consent-given", "consent-given", "consent-withdrawn"]
    with hospital.database.read() as connection:
        audit.verify(connection)
        dump = "\n".join(connection.connection.driver_connection.iterdump())
    assert "TELLING" not in dump
    assert who.key in dump  # the dump does hold the records


def test_the_key_is_private_and_another_one_is_refused(hospital) -> None:
    path = hospital.settings.training_key
    assert path.stat().st_mode & 0o777 == 0o600
    kept = path.read_bytes()
    path.write_bytes(bytes(32))
    with pytest.raises(ConfigError, match="not the key under which"):
        open_key(path, hospital.database)
    path.unlink()
    with pytest.raises(ConfigError, match="restore it from a backup"):
        open_key(path, hospital.database)
    path.write_bytes(kept)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_key(path, hospital.database)
    path.chmod(0o600)
    assert open_key(path, hospital.database).pseudonym("a") != open_key(path, hospital.database).pseudonym("b")
