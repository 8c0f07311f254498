"""Upload to a real Orthanc, and its change feed through restarts, deletions and a replaced database."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from dicom_node import orthanc as room
from dicom_node import uids
from dicom_node.core import jobs
from dicom_node.core.database import Database, instance, rejection
from dicom_node.core.errors import Refused, Unavailable
from dicom_node.core.settings import OrthancSettings, Settings
from dicom_node.orthanc import ChangeFeed, OrthancClient
from dicom_node.store import Store
from tests.system.orthanc_server import OrthancServer, free_port

from .peers import image, report, uid

DX = DigitalXRayImageStorageForPresentation


class Reader:
    """A node that reads the feed of one Orthanc."""

    def __init__(self, folder: Path, url: str, **more: Any) -> None:
        self.settings = Settings.model_validate(
            {
                "site": {"name": "Test", "state_dir": folder},
                "inference": {"engine": "plaintext"},
                "orthanc": {"url": url, "change_feed": True, "poll_s": 1.0, **more},
            }
        )
        self.database = Database(self.settings.database_url)
        self.database.migrate()
        self.store = Store(self.settings, self.database)
        self.feed = ChangeFeed(self.settings, self.database, self.store)
        self.now = 1000.0

    def close(self) -> None:
        self.feed.close()
        self.database.close()

    def restart(self) -> None:
        self.feed.close()
        self.feed = ChangeFeed(self.settings, self.database, self.store)

    def look(self) -> None:
        """Read until the feed says that there is no more."""
        self.now += 10.0
        while self.feed.run_once(self.now):
            pass

    def taken(self) -> list[str]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(instance.c.sop_instance_uid).order_by(instance.c.id)).scalars())


@pytest.fixture(scope="module")
def server() -> Iterator[OrthancServer]:
    with OrthancServer() as running:
        yield running


@pytest.fixture
def orthanc(server: OrthancServer) -> OrthancServer:
    server.clear()
    return server


@pytest.fixture
def reader(orthanc: OrthancServer, tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path / "state", orthanc.url)
    made.look()  # the first look marks the place to start from
    yield made
    made.close()


def images(*names: str, sop_class: str = DX) -> list[bytes]:
    return [image(name, sop_class=sop_class) for name in names]


def test_an_uploaded_report_is_kept_and_a_resend_is_delivered_too(orthanc: OrthancServer) -> None:
    content = report()
    with OrthancClient(OrthancSettings(url=orthanc.url + "/")) as client:
        receipts = [client.store(content) for _ in range(2)]
        assert client.version() == orthanc.get("/system")["Version"]
    assert [one.warning for one in receipts] == ["", "the destination already held it"]
    assert receipts[0].sop_instance_uid == uid(content)
    (identifier,) = orthanc.find(SOPInstanceUID=uid(content))
    assert pydicom.dcmread(BytesIO(orthanc.file(identifier))) == pydicom.dcmread(BytesIO(content))


def test_what_is_not_dicom_is_a_final_refusal(orthanc: OrthancServer) -> None:
    with OrthancClient(OrthancSettings(url=orthanc.url)) as client, pytest.raises(Refused):
        client.store(b"not DICOM")


def test_an_orthanc_that_filters_the_report_out_is_a_final_refusal(tmp_path: Path) -> None:
    script = tmp_path / "filter.lua"
    script.write_text("function ReceivedInstanceFilter(dicom, origin) return dicom['Modality'] ~= 'SR' end")
    with (
        OrthancServer(lua_scripts=[script]) as filtering,
        OrthancClient(OrthancSettings(url=filtering.url)) as client,
        pytest.raises(Refused),
    ):
        client.store(report())


def test_an_orthanc_that_is_away_may_come_back() -> None:
    with OrthancClient(OrthancSettings(url=f"http://127.0.0.1:{free_port()}")) as client:
        for call in (client.version, lambda: client.store(report())):
            with pytest.raises(Unavailable) as caught:
                call()
            assert caught.value.code == "unreachable"


def test_a_wrong_password_is_told_and_a_right_one_lets_us_in(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("s3cret\n")
    wrong.write_text("guess\n")
    guarded = {"AuthenticationEnabled": True, "RegisteredUsers": {"veilray": "s3cret"}, "HttpPort": free_port()}
    server = OrthancServer(config=guarded)
    server._answers = lambda: _reachable(server)
    with server:
        with (
            OrthancClient(OrthancSettings(url=server.url, username="veilray", password_file=wrong)) as client,
            pytest.raises(Unavailable) as caught,
        ):
            client.store(report())
        assert caught.value.code == "access-denied"
        assert "guess" not in str(caught.value)
        with OrthancClient(OrthancSettings(url=server.url, username="veilray", password_file=right)) as client:
            assert client.store(report()).status == 0


def _reachable(server: OrthancServer) -> bool:
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(transport=transport) as client:
        return client.get(f"{server.url}/system").status_code == 401


def test_every_new_radiograph_is_taken_once_and_nothing_else(orthanc: OrthancServer, reader: Reader) -> None:
    wanted = [*images("dx"), *images("cr", sop_class=ComputedRadiographyImageStorage)]
    wanted += images("sc", sop_class=SecondaryCaptureImageStorage)
    for content in (*wanted, *images("ct", sop_class=CTImageStorage), report()):
        orthanc.upload(content)
    reader.look()
    reader.look()
    orthanc.upload(wanted[0])  # a resend is no change for Orthanc
    reader.look()
    assert reader.taken() == [uid(content) for content in wanted]


def test_the_image_is_kept_as_orthanc_holds_it(orthanc: OrthancServer, reader: Reader) -> None:
    (content,) = images("exact")
    orthanc.upload(content)
    reader.look()
    with reader.database.read() as connection:
        row = connection.execute(sa.select(instance)).one()
    assert reader.store.dataset(row.sha256) == pydicom.dcmread(BytesIO(content))
    assert row.source == "orthanc"


def test_what_the_archive_held_before_is_not_taken_unasked(orthanc: OrthancServer, tmp_path: Path) -> None:
    (old,) = images("old")
    orthanc.upload(old)
    later = Reader(tmp_path / "later", orthanc.url)
    later.look()
    (new,) = images("new")
    orthanc.upload(new)
    later.look()
    assert later.taken() == [uid(new)]
    asked = Reader(tmp_path / "asked", orthanc.url, change_feed_from="beginning")
    asked.look()
    assert asked.taken() == [uid(old), uid(new)]
    later.close()
    asked.close()


def test_our_own_secondary_captures_do_not_come_back(orthanc: OrthancServer, reader: Reader) -> None:
    ours, others = images("ours", "others", sop_class=SecondaryCaptureImageStorage)
    with reader.database.write() as connection:
        jobs.add(connection, "deliver", f"deliver:{uid(ours)}:orthanc", {}, 1.0)
    orthanc.upload(ours)
    orthanc.upload(others)
    reader.look()
    assert reader.taken() == [uid(others)]


def test_an_image_deleted_before_we_look_is_passed_over(orthanc: OrthancServer, reader: Reader) -> None:
    first, second = images("first", "second")
    orthanc.upload(first)
    reader.look()
    identifier = orthanc.find(SOPInstanceUID=uid(first))[0]
    httpx.delete(f"{orthanc.url}/instances/{identifier}").raise_for_status()  # takes the change we stand at with it
    reader.look()
    orthanc.upload(second)
    reader.look()
    assert reader.taken() == [uid(first), uid(second)]


def test_a_deletion_between_listing_and_fetching_is_passed_over(orthanc: OrthancServer, reader: Reader) -> None:
    with OrthancClient(reader.settings.orthanc) as client:
        identifier = orthanc.upload(image("gone"))
        assert client.sop_class(identifier) == DX
        httpx.delete(f"{orthanc.url}/instances/{identifier}").raise_for_status()
        assert client.sop_class(identifier) is None
        assert client.file(identifier) is None


def test_long_feeds_are_read_page_by_page(
    orthanc: OrthancServer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PAGE", 3)
    wanted = images(*(f"page {number}" for number in range(7)))
    for content in wanted:
        orthanc.upload(content)
    reader.now += 10
    rounds = 1
    while reader.feed.run_once(reader.now):
        rounds += 1
    assert reader.taken() == [uid(content) for content in wanted]
    assert rounds > 3


def test_the_feed_is_looked_at_no_more_often_than_wanted(orthanc: OrthancServer, reader: Reader) -> None:
    orthanc.upload(image("soon"))
    assert reader.feed.run_once(reader.now + 0.5) is False
    assert reader.taken() == []
    reader.feed.run_once(reader.now + 1.0)
    assert len(reader.taken()) == 1


def test_nothing_is_lost_or_doubled_when_either_side_restarts(tmp_path: Path) -> None:
    ports = {"HttpPort": free_port(), "DicomPort": free_port()}
    wanted = images("a", "b", "c", "d")
    server = OrthancServer(config=ports)
    try:
        server.start()
        reader = Reader(tmp_path / "state", server.url)
        reader.look()
        server.upload(wanted[0])
        reader.look()
        server.upload(wanted[1])
        server.stop()
        with pytest.raises(Unavailable):
            reader.look()
        server.start()
        server.upload(wanted[2])
        reader.restart()
        reader.look()
        server.upload(wanted[3])
        reader.look()
        assert reader.taken() == [uid(content) for content in wanted]
        reader.close()
    finally:
        server.close()


@pytest.mark.parametrize("grown", [False, True], ids=["with fewer changes", "with more changes than before"])
def test_a_replaced_orthanc_database_is_read_from_its_start(tmp_path: Path, grown: bool) -> None:
    ports = {"HttpPort": free_port(), "DicomPort": free_port()}
    old, new = images("a", "b"), images("c", *(["d", "e", "f"] if grown else []))
    server = OrthancServer(config=ports)
    try:
        server.start()
        reader = Reader(tmp_path / "state", server.url)
        reader.look()
        for content in old:
            server.upload(content)
        reader.look()
        server.stop(signal.SIGKILL)
        shutil.rmtree(server._folder / "storage")
        server.start()
        for content in new:
            server.upload(content)
        reader.look()
        assert reader.taken() == [uid(content) for content in (*old, *new)]
        reader.close()
    finally:
        server.close()


def test_a_full_disk_stops_the_feed_before_the_image_and_not_after_it(orthanc: OrthancServer, tmp_path: Path) -> None:
    reader = Reader(tmp_path / "state", orthanc.url)
    reader.look()
    orthanc.upload(image("late"))
    full = Settings.model_validate({**reader.settings.model_dump(), "scp": {"minimum_free_bytes": 2**62}})
    reader.feed.close()
    reader.feed = ChangeFeed(full, reader.database, Store(full, reader.database))
    with pytest.raises(Unavailable):
        reader.look()
    reader.restart()
    reader.look()
    assert len(reader.taken()) == 1
    reader.close()


def test_an_image_the_store_rejects_is_recorded_and_does_not_block_the_feed(
    orthanc: OrthancServer, tmp_path: Path
) -> None:
    reader = Reader(tmp_path / "state", orthanc.url)
    reader.look()
    small = Settings.model_validate({**reader.settings.model_dump(), "scp": {"maximum_instance_bytes": 4096}})
    reader.feed.close()
    reader.feed = ChangeFeed(small, reader.database, Store(small, reader.database))
    orthanc.upload(image("big", rows=512))
    orthanc.upload(image("small", rows=8))
    reader.look()
    with reader.database.read() as connection:
        assert connection.execute(sa.select(rejection.c.code, rejection.c.source)).all() == [("too-large", "orthanc")]
    assert reader.taken() == [uids.derive("test image", "small")]
    reader.close()
