"""The reading page: what a radiologist says becomes a label with author and time, and a training label by consent."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from dicom_node.core import audit
from dicom_node.core.database import audit_event, consent, label, subject
from dicom_node.training import eligible, labels
from dicom_node.training.diagnosis import Diagnosis
from tests.dicom_node.web import records
from tests.dicom_node.web.conftest import Site


def token(site: Site, number: int) -> str:
    page = site.ask(f"/studies/{number}/reading").text
    return page.partition('name="token" value="')[2].partition('"')[0]


def read(site: Site, number: int, value: str, reader: str = "Dr. Ä. Example"):
    form = {"token": token(site, number), "reading": value, "reader": reader}
    return site.ask(f"/studies/{number}/reading", "POST", data=form)


def answered(site: Site, answer: str, share: float) -> int:
    with site.database.write() as connection:
        number = records.add_study(connection, site.now - 60)
    records.classify(site.database, number, site.now - 50, answer=answer, share=share)
    return number


def recorded(site: Site) -> list[tuple[int, str, str, float]]:
    with site.database.read() as connection:
        rows = connection.execute(sa.select(label)).all()
    return [(row.study_id, row.source, row.value, row.recorded_at) for row in rows]


def test_a_reading_is_stored_as_a_label_shown_with_author_and_time_and_audited_without_the_diagnosis(
    busy: Site,
) -> None:
    assert "not read yet" in busy.ask("/reading").text
    answer = read(busy, 5, "bacterial")
    assert answer.status_code == 303
    page = busy.ask(answer.headers["location"]).text
    assert "The reading was recorded." in page
    assert "by Dr. Ä. Example" in page
    assert recorded(busy) == [(5, labels.READING, "bacterial", busy.now)]
    assert "Dr. Ä. Example" in busy.ask("/reading").text
    with busy.database.read() as connection:
        audit.verify(connection)
        newest = connection.execute(sa.select(audit_event).order_by(audit_event.c.seq.desc()).limit(1)).one()
    assert (newest.event_type, newest.study_id, newest.at) == ("label-recorded", 5, busy.now)
    assert newest.actor == "dicom-node web: Dr. Ä. Example"
    assert "bacterial" not in str(newest.detail)


def test_a_reading_can_be_changed_and_taken_back(busy: Site) -> None:
    read(busy, 5, "bacterial")
    busy.now += 60
    read(busy, 5, "viral", reader="Dr. B")
    assert recorded(busy) == [(5, labels.READING, "viral", busy.now)]
    assert "by Dr. B" in busy.ask("/studies/5/reading").text
    again = read(busy, 5, "viral", reader="Dr. C")
    assert "it was so before" in busy.ask(again.headers["location"]).text
    gone = read(busy, 5, "none")
    assert "taken back" in busy.ask(gone.headers["location"]).text
    assert recorded(busy) == []


@pytest.mark.parametrize(
    ("answer", "value", "words"),
    [
        ("present", "viral", "confirms the answer"), ("present", "normal", "corrects the answer"),
        ("absent", "normal", "confirms the answer"), ("absent", "pneumonia", "corrects the answer"),
    ],
)  # fmt: skip
def test_the_page_says_whether_the_answer_was_right(site: Site, answer: str, value: str, words: str) -> None:
    number = answered(site, answer, 0.9 if answer == "present" else 0.1)
    read(site, number, value)
    assert words in site.ask(f"/studies/{number}/reading").text


def test_an_undetermined_answer_is_neither_confirmed_nor_corrected(site: Site) -> None:
    number = answered(site, "undetermined", 0.5)
    read(site, number, "normal")
    page = site.ask(f"/studies/{number}/reading").text
    assert "No pneumonia" in page
    assert "the answer</small>" not in page


def test_a_reading_is_trained_with_only_where_the_patient_agreed(busy: Site) -> None:
    read(busy, 5, "bacterial")
    row = {"study_id": 5, "revision": 1, "study_key": "s", "patient_key": "p", "patient_id_key": "i"}
    with busy.database.write() as connection:
        connection.execute(subject.insert().values(row))
        assert eligible.patients(connection, busy.now) == []
    assert "not trained with" in busy.ask("/studies/5/reading").text
    with busy.database.write() as connection:
        given = {"kind": "patient", "key": "p", "decision": "given", "recorded_at": 1.0}
        connection.execute(consent.insert().values(given))
        (one,) = eligible.patients(connection, busy.now)
    assert (one.study_id, one.label) == (5, Diagnosis.BACTERIAL)
    assert "may be trained with" in busy.ask("/studies/5/reading").text


@pytest.mark.parametrize(
    ("value", "reader", "sentence"),
    [
        ("bacterial", " ", "Say who reads"), ("bacterial", "x" * 65, "Say who reads"),
        ("bacterial", "a\nb", "Say who reads"), ("healthy", "Dr. A", "Choose what"), ("", "Dr. A", "Choose what"),
    ],
)  # fmt: skip
def test_a_form_that_says_nothing_usable_is_named_and_changes_nothing(
    busy: Site, value: str, reader: str, sentence: str
) -> None:
    answer = read(busy, 5, value, reader)
    assert (answer.status_code, sentence in answer.text) == (422, True)
    assert recorded(busy) == []


def test_a_reading_needs_an_answer_and_a_form_of_our_own(busy: Site) -> None:
    form = {"token": token(busy, 5), "reading": "normal", "reader": "Dr. A"}
    with busy.database.write() as connection:
        unanswered = records.add_study(connection, busy.now)
    for number in (unanswered, 999, 0):
        assert busy.ask(f"/studies/{number}/reading").status_code == 404
        assert busy.ask(f"/studies/{number}/reading", "POST", data=form).status_code == 404
    assert busy.ask("/studies/5/reading", "POST", data=form | {"token": "0" * 64}).status_code == 403
    assert recorded(busy) == []


def test_a_name_cannot_write_the_page(busy: Site) -> None:
    read(busy, 5, "viral", reader="<script>alert(1)</script>")
    for path in ("/reading", "/studies/5/reading", "/studies/5", "/audit"):
        assert "<script>alert" not in busy.ask(path).text
