"""The store: durable, idempotent, honest about a full disk, and whole again after a crash."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import CTImageStorage

from dicom_node import part10
from dicom_node.core import audit
from dicom_node.core.database import Database, audit_event, instance, rejection, study
from dicom_node.core.errors import IntegrityError, Refused, RejectedInstance, Unavailable
from dicom_node.durable import TemporaryFile
from dicom_node.store import Recovery, Store
from tests import raw_peer
from tests.raw_peer import DX, EXPLICIT, encode, image
from tests.scp_process import ROOT, site


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Database]:
    opened = Database(site(tmp_path).database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path, records: Database) -> Store:
    return Store(site(tmp_path), records, clock=itertools.count(1000.0).__next__)


def rows(records: Database, table: sa.Table) -> list[sa.Row]:
    with records.read() as connection:
        return list(connection.execute(sa.select(table).order_by(table.primary_key.columns[0])).all())


def files(state_dir: Path) -> list[str]:
    return sorted(
        path.name for kind in ("instances", "tmp") for path in (state_dir / kind).rglob("*") if path.is_file()
    )


def changed(name: str) -> bytes:
    """The image `name` with other pixels."""
    dataset, _ = image(name)
    dataset.PatientComments = "corrected"
    return raw_peer.part10(dataset)


def test_an_instance_is_on_disk_in_the_records_and_in_the_audit_trail(
    tmp_path: Path, store: Store, records: Database
) -> None:
    received = store.add_file(raw_peer.part10(image("one")[0]), "MODALITY@10.0.0.1")
    assert received.new
    assert files(tmp_path) == [received.sha256]
    assert store.dataset(received.sha256).PatientName == "Doe^Jo"
    (row,) = rows(records, instance)
    assert (row.source, row.current, row.conflict, row.sop_class_uid) == ("MODALITY@10.0.0.1", True, False, DX)
    assert rows(records, study)[0].revision == 1
    assert [event.event_type for event in rows(records, audit_event)] == ["instance-received"]
    with records.read() as connection:
        assert audit.verify(connection)[0] == 1


def test_the_kept_file_is_a_dicom_file_that_dcmtk_reads(store: Store) -> None:
    received = store.add_file(raw_peer.part10(image("one")[0]), "x")
    read = subprocess.run(["dcmftest", str(store.path(received.sha256))], capture_output=True, text=True, check=False)
    assert read.stdout.startswith("yes:")
    subprocess.run(["dcmdump", "-q", str(store.path(received.sha256))], check=True, capture_output=True)


def test_a_resend_changes_nothing_even_with_another_sender_s_meta_information(store: Store, records: Database) -> None:
    first = store.add_file(raw_peer.part10(image("one")[0]), "x")
    dataset = image("one")[0]
    dataset.file_meta.ImplementationVersionName = "OTHER 2.0"
    again = store.add_file(raw_peer.part10(dataset), "y")
    assert (again.instance_id, again.sha256, again.new) == (first.instance_id, first.sha256, False)
    assert len(rows(records, instance)) == len(rows(records, audit_event)) == rows(records, study)[0].revision == 1


def test_other_content_under_the_same_uid_is_kept_beside_the_first_and_becomes_current(
    tmp_path: Path, store: Store, records: Database
) -> None:
    first = store.add_file(raw_peer.part10(image("one")[0]), "x")
    second = store.add_file(changed("one"), "x")
    assert len(files(tmp_path)) == 2
    assert [(row.current, row.conflict) for row in rows(records, instance)] == [(False, True), (True, True)]
    assert rows(records, study)[0].revision == 2
    kinds = [event.event_type for event in rows(records, audit_event)]
    assert kinds == ["instance-received", "instance-received", "instance-conflict"]
    late_resend_of_the_first = store.add_file(raw_peer.part10(image("one")[0]), "x")
    assert late_resend_of_the_first.instance_id == first.instance_id
    assert [row.id for row in rows(records, instance) if row.current] == [second.instance_id]


def test_an_image_that_moves_to_another_study_changes_both(store: Store, records: Database) -> None:
    store.add_file(raw_peer.part10(image("one", study="a")[0]), "x")
    store.add_file(raw_peer.part10(image("one", study="b")[0]), "x")
    assert [row.revision for row in rows(records, study)] == [2, 1]


def test_both_databases_record_the_same(tmp_path: Path, database: Database) -> None:
    kept = Store(site(tmp_path), database)
    for content in (raw_peer.part10(image("one")[0]), changed("one"), raw_peer.part10(image("two")[0])):
        kept.add_file(content, "x")
    assert [(row.current, row.conflict) for row in rows(database, instance)] == [
        (False, True),
        (True, True),
        (True, False),
    ]
    assert [row.revision for row in rows(database, study)] == [3]


def test_concurrent_stores_share_commits_and_lose_nothing(store: Store, records: Database) -> None:
    contents = [raw_peer.part10(image(f"n{number % 20}")[0]) for number in range(40)]  # each one twice
    received = []
    threads = [
        threading.Thread(target=lambda part=part: received.extend(store.add_file(one, "x") for one in part))
        for part in (contents[0::4], contents[1::4], contents[2::4], contents[3::4])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(received) == 40
    assert sum(one.new for one in received) == len(rows(records, instance)) == rows(records, study)[0].revision == 20
    with records.read() as connection:
        assert audit.verify(connection)[0] == 20


def test_what_one_caller_s_transaction_raises_does_not_touch_the_others(store: Store, records: Database) -> None:
    barrier, failures = threading.Barrier(8), []

    def work(number: int) -> None:
        barrier.wait()
        try:
            if number % 2:
                store.reject(RejectedInstance("no", status=1, code=None if number % 4 else "x" * 10), object(), "x")
            else:
                store.add_file(raw_peer.part10(image(f"n{number}")[0]), "x")
        except TypeError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 4
    assert len(rows(records, instance)) == 4
    assert rows(records, rejection) == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"SOPInstanceUID": "1.2.x"}, 0x0117),
        ({"StudyInstanceUID": "1." + "2" * 64}, 0x0117),
        ({"StudyInstanceUID": ""}, 0xC000),
        ({"SeriesInstanceUID": None}, 0xC000),
        ({"SOPClassUID": str(CTImageStorage)}, 0x0122),
    ],
)
@pytest.mark.filterwarnings("ignore:.*UI:UserWarning")  # pydicom warns while the test builds what is wrong
def test_what_has_no_valid_identity_is_rejected_and_leaves_no_file(
    tmp_path: Path, store: Store, change: dict[str, str | None], status: int
) -> None:
    dataset, _ = image("one")
    with pydicom.config.disable_value_validation():
        for keyword, value in change.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        content = part10.encode_meta(DX, "1.2", EXPLICIT) + encode(dataset)
    with pytest.raises(RejectedInstance) as caught:
        store.add_file(content, "x")
    assert caught.value.status == status
    assert "4711" not in str(caught.value)
    assert files(tmp_path) == []


def test_a_file_without_meta_information_is_rejected(store: Store) -> None:
    with pytest.raises(RejectedInstance, match="C-STORE"):
        store.add_file(encode(image("one")[0]), "x")


def test_an_oversized_data_set_is_rejected_before_it_fills_the_disk(tmp_path: Path, records: Database) -> None:
    small = Store(site(tmp_path, maximum_instance_bytes=1024), records)
    incoming = small.begin(DX, "1.2", EXPLICIT)
    with pytest.raises(RejectedInstance, match="maximum_instance_bytes"):
        incoming.write(b"\0" * 2000)
    incoming.discard()
    assert files(tmp_path) == []


def test_little_free_space_is_told_before_anything_is_written(tmp_path: Path, records: Database) -> None:
    strict = Store(site(tmp_path, minimum_free_bytes=2**60), records)
    with pytest.raises(Unavailable, match="minimum_free_bytes"):
        strict.add_file(raw_peer.part10(image("one")[0]), "x")


def test_a_write_that_the_system_cuts_short_is_never_acknowledged(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes a real write() take only a part, and the next one fail."""
    script = """
import resource, signal, sys
from pathlib import Path
from dicom_node.core.errors import Unavailable
from dicom_node.durable import TemporaryFile
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path(sys.argv[1])
file = TemporaryFile(folder)
try:
    file.write(b"x" * 99_000)
    file.write(b"x" * 99_000)
except Unavailable as error:
    print(error)
file.discard()
print(len(list(folder.iterdir())))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["the disk cannot take the file: File too large", "0"]


def test_a_file_shorter_than_what_was_written_is_not_settled(tmp_path: Path) -> None:
    file = TemporaryFile(tmp_path)
    file.write(b"twelve bytes")
    (part,) = tmp_path.iterdir()
    os.truncate(part, 5)
    with pytest.raises(Unavailable, match="5 of 12"):
        file.settle(tmp_path / "final", 12)
    assert list(tmp_path.iterdir()) == []


def test_recovery_sweeps_abandoned_temporary_files_and_spares_living_writers(tmp_path: Path, store: Store) -> None:
    (tmp_path / "tmp" / "4711-0.part").write_bytes(b"left by a killed process")
    living = store.begin(DX, "1.2", EXPLICIT)
    assert store.recover() == Recovery(swept=1, imported=0, missing=0)
    assert len(files(tmp_path)) == 1
    living.discard()


def test_recovery_imports_a_file_whose_row_was_never_committed(tmp_path: Path, store: Store, records: Database) -> None:
    received = store.add_file(raw_peer.part10(image("one")[0]), "x")
    with records.write() as connection:
        connection.execute(instance.delete())
    assert store.recover() == Recovery(swept=0, imported=1, missing=0)
    (row,) = rows(records, instance)
    assert (row.sha256, row.source) == (received.sha256, "recovery")
    assert store.recover() == Recovery(0, 0, 0)


def test_recovery_reports_a_loss_once_and_takes_it_back_when_the_file_returns(store: Store, records: Database) -> None:
    content = raw_peer.part10(image("one")[0])
    received = store.add_file(content, "x")
    store.path(received.sha256).unlink()
    assert store.recover().missing == 1
    assert store.recover().missing == 0
    assert rows(records, instance)[0].refusal_code == "file-missing"
    alerts = [row for row in rows(records, audit_event) if row.event_type == "instance-missing"]
    assert [(row.event_id, row.outcome) for row in alerts] == [("110113", 12)]
    with pytest.raises(IntegrityError, match="missing"):
        store.dataset(received.sha256)
    assert store.add_file(content, "x").instance_id == received.instance_id
    assert rows(records, instance)[0].refusal_code is None
    assert store.dataset(received.sha256).Rows == 16


def test_recovery_does_not_import_a_damaged_stray_file(store: Store, records: Database) -> None:
    stray = store.path("ab" + "0" * 62)
    stray.write_bytes(raw_peer.part10(image("one")[0]))
    assert store.recover().imported == 0
    assert rows(records, instance) == []
    assert [row.event_type for row in rows(records, audit_event)] == ["stray-file"]


@pytest.mark.parametrize("where", ["pixels", "transfer syntax"])
def test_an_altered_file_is_never_read(store: Store, where: str) -> None:
    received = store.add_file(raw_peer.part10(image("one")[0]), "x")
    path = store.path(received.sha256)
    content = path.read_bytes()
    altered = content[:-1] + bytes([content[-1] ^ 1])
    if where == "transfer syntax":
        altered = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0")
    path.write_bytes(altered)
    with pytest.raises(IntegrityError, match="altered"):
        store.dataset(received.sha256)


def test_reports_are_kept_by_their_hash(store: Store) -> None:
    digest = store.put_report(b"a report")
    assert store.put_report(b"a report") == digest
    assert store.report(digest) == b"a report"
    with pytest.raises(IntegrityError, match="missing"):
        store.report("0" * 64)


def test_a_data_set_that_pydicom_cannot_parse_is_a_refusal(store: Store) -> None:
    nested = bytes.fromhex("08001511 5351 0000 ffffffff")  # sequences nested deeper than any stack
    depth = 3000
    body = encode(image("one")[0])
    at = body.index(b"\x20\x00\x0e\x00")
    tail = at + 8 + int.from_bytes(body[at + 6 : at + 8], "little")
    item = bytes.fromhex("feff00e0ffffffff")
    deep = b"\x20\x00\x10\x10" + nested[4:] + (item + nested) * depth
    content = part10.encode_meta(DX, str(image("one")[1]), EXPLICIT) + body[:tail] + deep + body[tail:]
    received = store.add_file(content, "x")
    with pytest.raises(Refused, match="malformed"):
        store.dataset(received.sha256)
