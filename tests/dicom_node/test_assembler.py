"""The assembler: one job for each complete set of inputs, whatever is resent, late, refused or killed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydicom import Dataset

from dicom_node import malformed, selection, study
from dicom_node.assembler import TELLING, Assembler
from dicom_node.core import jobs
from dicom_node.core.database import Database, audit_event, instance, job
from dicom_node.core.database import study as study_table
from dicom_node.core.errors import RejectedInstance, Unavailable
from dicom_node.core.settings import Population
from dicom_node.store import Store
from tests import raw_peer
from tests.scp_process import site

CHILDREN = Population(min_age_years=1, max_age_years=5)


class Site:
    """A store, its records and an assembler, with a clock of their own."""

    def __init__(self, state_dir: Path) -> None:
        settings = site(state_dir)
        self.now = 1000.0
        self.open: set[str] = set()
        self.database = Database(settings.database_url)
        self.database.migrate()
        self.store = Store(settings, self.database, clock=lambda: self.now)
        self.assembler = Assembler(
            settings, self.database, self.store, open_studies=lambda: self.open, population=CHILDREN
        )

    def take(self, dataset: Dataset) -> None:
        self.store.add_file(raw_peer.part10(dataset), "MODALITY")

    def assemble(self, after: float = 10.0) -> bool:
        self.now += after
        return self.assembler.run_once(self.now)

    def rows(self, table: sa.Table) -> list[sa.Row]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(table).order_by(table.primary_key.columns[0])).all())


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Site]:
    opened = Site(tmp_path)
    yield opened
    opened.database.close()


def chest(name: str, study_name: str = "study", **changes: str) -> Dataset:
    """A child's frontal chest radiograph that every rule accepts, then changed."""
    dataset, _ = raw_peer.image(name, study=study_name)
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.PatientAge = "CHEST", "PA", "003Y"
    dataset.StudyDate = dataset.ContentDate = "20240102"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def test_a_quiet_study_becomes_one_job_with_its_eligible_images(at: Site) -> None:
    at.take(chest("a"))
    at.take(chest("b"))
    at.take(chest("lateral", ViewPosition="LL"))
    assert at.assemble()
    (made,) = at.rows(job)
    assert (made.kind, made.state, made.payload) == (study.CLASSIFY, "waiting", {"instances": [1, 2], "revision": 3})
    assert [row.refusal_code for row in at.rows(instance)] == [None, None, "view"]
    assert [row.event_type for row in at.rows(audit_event)][3:] == ["image-refused", "study-complete"]
    assert not at.assemble()


def test_a_study_is_not_complete_before_the_quiet_period(at: Site) -> None:
    at.take(chest("a"))
    assert not at.assemble(after=9.0)
    at.take(chest("b"))
    assert not at.assemble(after=9.0)
    assert at.assemble(after=1.0)


def test_a_study_is_not_complete_while_an_association_carries_it(at: Site) -> None:
    at.take(chest("a"))
    at.take(chest("other", "another study"))
    at.open = {str(chest("a").StudyInstanceUID)}
    assert at.assemble()
    assert [row.study_id for row in at.rows(job)] == [2]
    at.open = set()
    assert at.assemble()
    assert [row.study_id for row in at.rows(job)] == [2, 1]


def test_a_resend_makes_no_second_job(at: Site) -> None:
    at.take(chest("a"))
    at.assemble()
    at.take(chest("a"))
    assert not at.assemble()
    assert len(at.rows(job)) == 1


@pytest.mark.parametrize(
    ("late", "payload"),
    [
        (chest("b"), {"instances": [1, 2], "revision": 2}),
        (chest("a", PatientComments="corrected"), {"instances": [2], "revision": 2}),
    ],
    ids=["another image", "other content of the same image"],
)
def test_what_comes_late_makes_a_second_job(at: Site, late: Dataset, payload: dict[str, object]) -> None:
    at.take(chest("a"))
    at.assemble()
    at.take(late)
    assert at.assemble()
    assert [row.payload for row in at.rows(job)] == [{"instances": [1], "revision": 1}, payload]


def test_a_late_image_that_is_refused_makes_no_second_job(at: Site) -> None:
    at.take(chest("a"))
    at.assemble()
    at.take(chest("lateral", ViewPosition="LL"))
    assert at.assemble()
    assert len(at.rows(job)) == 1


def test_a_study_with_nothing_eligible_stands_as_refused_with_the_most_telling_reason(at: Site) -> None:
    at.take(chest("foot", BodyPartExamined="FOOT"))
    at.take(chest("grown", PatientAge="044Y"))
    at.take(chest("lateral", ViewPosition="LL"))
    assert at.assemble()
    (made,) = at.rows(job)
    assert (made.state, made.code, made.finished_at) == ("refused", "age", at.now)
    assert "age" in made.message
    assert jobs.lease(at.database, (study.CLASSIFY,), "w", 60, at.now) is None
    at.take(chest("grown", PatientAge="044Y"))
    assert not at.assemble()


def test_every_refusal_of_the_rules_has_its_place_in_the_order() -> None:
    source = Path(selection.__file__).read_text() + Path(malformed.__file__).read_text()
    named = set(re.findall(r'code="([a-z-]+)"', source))
    assert named - {"memory"} <= set(TELLING)  # too little memory is no refusal: it is tried again


def test_a_damaged_file_fails_alone_and_is_told(at: Site) -> None:
    at.take(chest("a"))
    at.take(chest("b"))
    path = at.store.path(at.rows(instance)[0].sha256)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert at.assemble()
    assert [row.refusal_code for row in at.rows(instance)] == ["integrity", None]
    assert at.rows(job)[0].payload["instances"] == [2]
    alerts = [row for row in at.rows(audit_event) if row.event_id == "110113"]
    assert [row.event_type for row in alerts] == ["image-refused"]


def test_a_crash_between_job_and_closed_revision_is_impossible(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    at.take(chest("a"))

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dicom_node.assembler.audit.append", dies)
        with pytest.raises(KeyboardInterrupt):
            at.assemble()
    assert at.rows(job) == []
    assert at.rows(study_table)[0].closed_revision == 0
    assert at.assemble()
    assert len(at.rows(job)) == 1


def test_what_arrives_while_a_study_is_judged_is_not_lost(at: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    at.take(chest("a"))
    judge = at.assembler._judge

    def slow(instances: object) -> object:
        at.take(chest("b"))
        return judge(instances)

    monkeypatch.setattr(at.assembler, "_judge", slow)
    at.assemble()
    monkeypatch.undo()
    assert at.assemble()
    assert [row.payload["instances"] for row in at.rows(job)] == [[1], [1, 2]]


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.11.1"])
def test_a_report_that_comes_back_triggers_nothing(at: Site, sop_class: str) -> None:
    at.take(chest("a"))
    at.assemble()
    with pytest.raises(RejectedInstance, match="Storage"):
        at.take(chest("our report", SOPClassUID=sop_class, Modality="SR"))
    assert not at.assemble()
    assert at.rows(study_table)[0].revision == 1


def test_a_study_that_cannot_be_judged_now_does_not_hold_up_the_others(at: Site) -> None:
    at.take(chest("a"))
    at.take(chest("b", "another study"))
    broken = at.rows(instance)[0].sha256
    content = at.store.path(broken).read_bytes()
    at.store.path(broken).unlink()
    at.store.path(broken).mkdir()  # a read of it fails as on a failing disk
    with pytest.raises(Unavailable):
        at.assemble()
    assert [row.study_id for row in at.rows(job)] == [2]
    at.store.path(broken).rmdir()
    at.store.path(broken).write_bytes(content)
    assert at.assemble()
    assert [row.study_id for row in at.rows(job)] == [2, 1]
