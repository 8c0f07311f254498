"""What the admin pages show, and what they never show."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from dicom_node.core import jobs
from dicom_node.web import queries, show
from dicom_node.web.app import NOTICE
from tests.dicom_node.web import records
from tests.dicom_node.web.conftest import Site

PAGES = ("/", "/reading", "/refusals", "/jobs", "/audit", "/status")


class Words(HTMLParser):
    """Collects the rows of all tables as words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self._inside = True
            self.rows.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "tr"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1] = f"{self.rows[-1]} {data.strip()}".strip()


def row_of(page: str, start: str) -> str:
    return next(row for row in Words(page).rows if row.startswith(start))


@pytest.mark.parametrize("path", [*PAGES, "/studies/1", "/studies/1/reading", "/nowhere"])
def test_every_page_says_that_it_is_research_and_unverified(busy: Site, path: str) -> None:
    assert NOTICE in busy.ask(path).text


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_site_says_what_to_do_next(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.status_code == 200
    hint = {"/": "dicom-node check", "/refusals": "scp.peers", "/jobs": "quiet period", "/audit": "dicom-node serve"}
    assert hint.get(path, "secure-infer worker") in answer.text


def test_a_delivered_study_shows_answer_certainty_model_destination_and_seconds(site: Site) -> None:
    with site.database.write() as connection:
        number = records.add_study(connection, records.NOW - 60, images=2)
    records.classify(site.database, number, records.NOW - 50, answer="present", share=0.934)
    records.deliver(site.database, records.NOW - 49.5)
    row = row_of(site.ask("/").text, f"Study {number}")
    for words in (" 2 ", "Present", "93 %", "pneumonia-2026.1", "pacs", "10 s", "Delivered"):
        assert words in row, words


def test_every_state_of_a_study_is_named(site: Site) -> None:
    found = records.a_day(site.database)
    with site.database.read() as connection:
        states = {row.id: row.state for row in queries.studies(connection)}
    expected = {"undelivered": "failed", "classify-failed": "failed", "classify-refused": "refused"}
    expected |= {"classify-waiting": "waiting"}
    assert {name: states[number] for name, number in found.items()} == {
        name: expected.get(name, name) for name in found
    }


def test_a_study_changed_after_its_answer_shows_the_old_answer_and_that_more_is_coming(site: Site) -> None:
    with site.database.write() as connection:
        number = records.add_study(connection, records.NOW - 60)
    records.classify(site.database, number, records.NOW - 50, answer="absent", share=0.04)
    records.deliver(site.database, records.NOW - 49)
    records.classify(site.database, number, records.NOW - 5, "waiting", answer="present", share=0.9)
    row = row_of(site.ask("/").text, f"Study {number}")
    assert "Absent" in row
    assert "Waiting" in row


def test_the_report_of_an_earlier_answer_does_not_count_as_delivery_of_the_newest(site: Site) -> None:
    with site.database.write() as connection:
        number = records.add_study(connection, records.NOW - 60)
    records.classify(site.database, number, records.NOW - 50, answer="absent", share=0.04)
    records.deliver(site.database, records.NOW - 49)
    with site.database.read() as connection:
        assert queries.studies(connection)[0].delivered_to == ("pacs",)
    records.classify(site.database, number, records.NOW - 20, answer="present", share=0.9)
    with site.database.read() as connection:
        (row,) = queries.studies(connection)
    assert (row.state, row.delivered_to, row.seconds) == ("delivering", (), None)


def test_a_study_is_delivered_only_when_every_report_of_its_answer_is(site: Site) -> None:
    with site.database.write() as connection:
        number = records.add_study(connection, records.NOW - 60)
    records.classify(site.database, number, records.NOW - 50, answer="absent", share=0.04)
    first = next(records.deliveries(site.database, records.NOW - 49))
    with site.database.write() as connection:
        jobs.finish(connection, first, {}, records.NOW - 49)
    with site.database.read() as connection:
        (row,) = queries.studies(connection)
    assert (row.state, row.delivered_to, row.seconds) == ("delivering", (), None)


def test_the_studies_page_names_no_uid_and_the_detail_page_one_for_the_pacs(busy: Site) -> None:
    for path in PAGES:
        assert "2.25." not in busy.ask(path).text, path
    detail = busy.ask("/studies/5").text
    assert "2.25.770004" in detail
    assert set(re.findall(r"2\.25\.\d+", detail)) == {"2.25.770004"}


def test_patient_data_in_the_stored_files_reaches_no_page(busy: Site) -> None:
    folder = busy.settings.site.state_dir / "instances" / "ab"
    folder.mkdir(parents=True)
    (folder / f"{1:032x}{0:032x}").write_bytes(b"DICM PatientName^Planted PID-4711")
    for path in (*PAGES, "/studies/1", "/jobs?view=done", "/metrics", "/healthz", "/static/", "/instances/ab/"):
        text = busy.ask(path).text
        assert "Planted" not in text
        assert "4711" not in text


def test_text_from_peers_is_escaped(site: Site) -> None:
    with site.database.write() as connection:
        records.reject(connection, 1.0, 0xC000, "unreadable", "<script>alert(1)</script>", "<b>1.2.3</b>")
    text = site.ask("/refusals").text
    assert "&lt;script&gt;" in text
    assert "<script>" not in text.replace('<script src="/static/refresh.js"', "")
    assert "<b>" not in text


def test_refusals_are_shown_with_code_reason_status_and_can_be_narrowed_by_code(busy: Site) -> None:
    everything = busy.ask("/refusals").text
    assert "the patient is 54 years old" in row_of(everything, "Image 1")
    assert "0x0122 SOP Class Not Supported" in everything
    narrowed = busy.ask("/refusals?code=sop-class").text
    assert "CT images are not taken" in narrowed
    assert "54 years" not in narrowed
    assert "0xC000" not in narrowed


def test_jobs_are_listed_by_state_with_reason_holder_and_next_try(busy: Site) -> None:
    opened = busy.ask("/jobs").text
    assert "party-away party 1 did not answer" in opened.replace("</code>", "").replace('<code class="tag">', "")
    assert "worker@node1:4211" in opened
    assert "next try in 5 min" in opened
    failed = busy.ask("/jobs?view=failed").text
    assert failed.count("Try again</button>") == len(records.failed_jobs(busy.database)) == 3
    assert "worker@node1" not in failed
    assert busy.ask("/jobs?view=everything").status_code == 404


def test_a_broken_audit_chain_is_said_loudly_and_a_whole_one_with_its_head(busy: Site) -> None:
    whole = busy.ask("/audit").text
    assert "is intact" in whole
    assert len(re.findall(r"\b[0-9a-f]{64}\b", whole)) == 1
    with busy.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_event_no_update")
        connection.exec_driver_sql("UPDATE audit_event SET actor = 'nobody' WHERE seq = 3")
    busy.now += 61
    broken = busy.ask("/audit").text
    assert "The chain is broken" in broken
    assert "altered at row 3" in broken


def test_long_lists_are_paged_by_number(site: Site) -> None:
    with site.database.write() as connection:
        for index in range(queries.PAGE + 3):
            records.add_study(connection, records.NOW - 900 + index)
    first = site.ask("/").text
    assert '<a href="/?before=4">Older</a>' in first
    second = site.ask("/?before=4").text
    assert [row.split()[1] for row in Words(second).rows[1:]] == ["3", "2", "1"]


@pytest.mark.parametrize("path", ["/studies/0", "/studies/99", "/studies/x", "/?before=-1", "/studies/" + "9" * 30])
def test_a_wrong_address_is_a_page_without_a_stack_trace(busy: Site, path: str) -> None:
    answer = busy.ask(path)
    assert answer.status_code == 404
    assert "<h1>" in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "< 1 %"), (0.004, "< 1 %"), (0.005, "1 %"), (0.934, "93 %"), (0.995, "> 99 %"), (1.0, "> 99 %")],
)
def test_a_probability_is_never_shown_as_certain(share: float, text: str) -> None:
    assert show.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0412, "41 ms"),
        (1.26, "1.3 s"),
        (45.0, "45 s"),
        (600.0, "10 min"),
        (9000.0, "2 h"),
        (3e5, "3 days"),
    ],
)
def test_spans_are_shown_in_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert show.duration(seconds) == text
