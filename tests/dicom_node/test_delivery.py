"""The outbox: what becomes of a delivery when its destination takes it, is away, is busy, refuses, or we die."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.uid import BasicTextSRStorage, Comprehensive3DSRStorage

from dicom_node.core import jobs
from dicom_node.core.database import Database, audit_event, job
from dicom_node.core.settings import Settings
from dicom_node.delivery import Delivery
from dicom_node.store import Store
from tests.system.orthanc_server import OrthancServer

from .peers import Storescp, free_port, report, scripted_scp, storescp, uid

NOW = 1_700_000_000.0
GIVE_UP_S = 3600.0


class Site:
    """A site's state folder with everything that delivering needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = self.configure()
        self.database = Database(self.settings.database_url)
        self.database.migrate()
        self.store = Store(self.settings, self.database)

    def configure(self, *others: dict[str, Any], orthanc: dict[str, Any] | None = None, **ports: int) -> Settings:
        destinations = [
            {"name": name, "kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": port}
            for name, port in ports.items()
        ]
        destinations += others
        self.settings = Settings.model_validate(
            {
                "site": {"name": "Test", "state_dir": self.folder},
                "scp": {"network_timeout_s": 2.0, "acse_timeout_s": 1.0},
                "inference": {"engine": "plaintext"},
                "jobs": {"lease_s": 1.0},
                "orthanc": orthanc,
                "delivery": {
                    "destinations": destinations,
                    "first_retry_s": 5.0,
                    "longest_retry_s": 40.0,
                    "give_up_after_s": GIVE_UP_S,
                },
            }
        )
        return self.settings

    def queue(self, content: bytes, name: str = "pacs", now: float = NOW) -> None:
        payload = {"sha256": self.store.put_report(content), "destination": name}
        payload |= {"sop_class_uid": "1.2.3", "sop_instance_uid": uid(content)}
        with self.database.write() as connection:
            jobs.add(connection, "deliver", f"deliver:{uid(content)}:{name}", payload, now)

    def delivery(self, owner: str = "a") -> Delivery:
        return Delivery(self.settings, self.database, self.store, owner=owner)

    def jobs(self) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(job).order_by(job.c.id)))

    def trail(self) -> list[tuple[str, int]]:
        with self.database.read() as connection:
            rows = connection.execute(sa.select(audit_event).order_by(audit_event.c.seq))
            return [(row.event_type, row.outcome) for row in rows]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "state")
    yield made
    made.database.close()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Storescp]:
    with storescp(tmp_path / "archive", classes=["Comprehensive3DSRStorage", "BasicTextSRStorage"]) as peer:
        yield peer


def answering(status: int) -> Callable[[object], int]:
    return lambda event: status


def test_nothing_due_is_nothing_done(site: Site) -> None:
    site.configure(pacs=free_port())
    assert site.delivery().run_once(NOW) is False


def test_every_report_reaches_the_archive_and_the_trail(site: Site, archive: Storescp) -> None:
    site.configure(pacs=archive.port)
    contents = [report("one"), report("two", sop_class=BasicTextSRStorage)]
    for content in contents:
        site.queue(content)
    delivery = site.delivery()
    assert [delivery.run_once(NOW), delivery.run_once(NOW), delivery.run_once(NOW)] == [True, True, False]
    assert {kept.SOPInstanceUID for kept in archive.kept()} == {uid(content) for content in contents}
    assert [row.state for row in site.jobs()] == ["done", "done"]
    assert site.jobs()[0].result["sop_instance_uid"] == uid(contents[0])
    assert site.jobs()[0].finished_at >= NOW
    assert site.trail() == [("report-delivered", 0)] * 2


def test_a_destination_that_is_away_is_tried_again_with_growing_pauses_and_then_served(
    site: Site, tmp_path: Path
) -> None:
    port = free_port()
    site.configure(pacs=port)
    site.queue(report())
    delivery, now, pauses = site.delivery(), NOW, []
    for _ in range(5):
        assert delivery.run_once(now)
        (row,) = site.jobs()
        assert (row.state, row.code) == ("waiting", "unreachable")
        pauses.append(round(row.run_at - now))
        now = row.run_at
    assert pauses == [5, 10, 20, 40, 40]
    with scripted_scp(answering(0), [Comprehensive3DSRStorage]) as port:
        site.configure(pacs=port)
        assert site.delivery().run_once(now)
    assert site.jobs()[0].state == "done"
    assert site.trail() == [("report-delivered", 0)]


def test_a_destination_that_is_away_does_not_hold_up_the_others(site: Site, archive: Storescp) -> None:
    site.configure(away=free_port(), pacs=archive.port)
    for number in range(5):
        site.queue(report(str(number)), "away", NOW + number * 0.001)
    site.queue(report("last"), "pacs", NOW + 0.1)
    delivery = site.delivery()
    for _ in range(6):
        assert delivery.run_once(NOW + 1)
    states = [(row.payload["destination"], row.state) for row in site.jobs()]
    assert states == [("away", "waiting")] * 5 + [("pacs", "done")]
    assert len({row.run_at for row in site.jobs()[:5]}) == 1  # one call, not five, told that it is away


def test_one_report_reaches_the_same_archive_by_three_ways_and_is_there_once(site: Site) -> None:
    content = report()
    with OrthancServer(config={"DicomAlwaysAllowStore": True}) as orthanc:
        stow = {"name": "web", "kind": "stow", "url": f"{orthanc.url}/dicom-web"}
        rest = {"name": "rest", "kind": "orthanc"}
        site.configure(stow, rest, orthanc={"url": orthanc.url}, pacs=orthanc.dicom_port)
        for name in ("pacs", "web", "rest"):
            site.queue(content, name)
        delivery = site.delivery()
        while delivery.run_once(NOW):
            pass
        assert len(orthanc.find(SOPInstanceUID=uid(content))) == 1
    assert [row.state for row in site.jobs()] == ["done"] * 3
    assert site.jobs()[2].result["warning"] == "the destination already held it"


def test_settings_that_an_operator_can_mend_do_not_lose_the_delivery(site: Site, archive: Storescp) -> None:
    absent = str(site.folder / "absent.pem")
    tls = {"certificate": absent, "key": absent, "ca": absent}
    at = {"ae_title": "PACS", "host": "127.0.0.1", "port": archive.port}
    site.configure({"name": "pacs", "kind": "dicom", **at, "tls": tls})
    site.queue(report())
    assert site.delivery().run_once(NOW)
    assert [(row.state, row.code) for row in site.jobs()] == [("waiting", "tls-files")]
    site.configure(pacs=archive.port)
    assert site.delivery().run_once(NOW + 10)
    assert site.jobs()[0].state == "done"


@pytest.mark.parametrize("status", [0xA700, 0x0110])
def test_a_destination_out_of_resources_is_tried_again(site: Site, status: int) -> None:
    with scripted_scp(answering(status), [Comprehensive3DSRStorage]) as port:
        site.configure(pacs=port)
        site.queue(report())
        assert site.delivery().run_once(NOW)
    (row,) = site.jobs()
    assert (row.state, row.code, row.attempts) == ("waiting", "destination-failed", 1)


@pytest.mark.parametrize("status", [0xA900, 0xC001, 0x0124])
def test_a_final_refusal_is_left_to_a_person(site: Site, status: int) -> None:
    with scripted_scp(answering(status), [Comprehensive3DSRStorage]) as port:
        site.configure(pacs=port)
        site.queue(report())
        assert site.delivery().run_once(NOW)
    (row,) = site.jobs()
    assert (row.state, row.code) == ("failed", "destination-refused")
    assert f"0x{status:04X}" in row.message
    assert site.trail() == [("report-not-delivered", 8)]


def test_a_destination_that_aborts_is_tried_again(site: Site) -> None:
    def abort(event: object) -> int:
        event.assoc.abort()
        return 0

    with scripted_scp(abort, [Comprehensive3DSRStorage]) as port:
        site.configure(pacs=port)
        site.queue(report())
        assert site.delivery().run_once(NOW)
    assert [(row.state, row.code) for row in site.jobs()] == [("waiting", "association-lost")]


def test_a_warning_counts_as_delivered_and_is_noted(site: Site) -> None:
    with scripted_scp(answering(0xB000), [Comprehensive3DSRStorage]) as port:
        site.configure(pacs=port)
        site.queue(report())
        assert site.delivery().run_once(NOW)
    (row,) = site.jobs()
    assert (row.state, row.result["status"]) == ("done", "0xB000")
    assert row.result["warning"] == "data elements were coerced"


def test_after_a_week_a_person_is_asked(site: Site) -> None:
    site.configure(pacs=free_port())
    site.queue(report())
    delivery = site.delivery()
    assert delivery.run_once(NOW + GIVE_UP_S - 10)
    assert site.jobs()[0].state == "waiting"
    assert delivery.run_once(NOW + GIVE_UP_S + 60)
    assert (site.jobs()[0].state, site.jobs()[0].code) == ("failed", "unreachable")
    assert site.trail() == [("report-not-delivered", 8)]


def test_a_destination_that_left_the_settings_is_named_to_a_person(site: Site) -> None:
    site.configure(pacs=free_port())
    site.queue(report(), "old-pacs")
    assert site.delivery().run_once(NOW)
    (row,) = site.jobs()
    assert (row.state, row.code) == ("failed", "destination-unknown")
    assert "'old-pacs'" in row.message


@pytest.mark.parametrize("damage", ["gone", "altered"])
def test_a_damaged_report_is_never_sent(site: Site, archive: Storescp, damage: str) -> None:
    site.configure(pacs=archive.port)
    site.queue(report())
    (path,) = [one for one in (site.folder / "reports").rglob("*") if one.is_file()]
    if damage == "gone":
        path.unlink()
    else:
        path.chmod(0o600)
        path.write_bytes(path.read_bytes().replace(b"Nothing seen", b"Something   "))
    assert site.delivery().run_once(NOW)
    assert [(row.state, row.code) for row in site.jobs()] == [("failed", "integrity")]
    assert archive.kept() == []


def test_the_lease_outlives_a_destination_that_is_as_slow_as_it_may_be(site: Site) -> None:
    site.configure(pacs=free_port())
    site.queue(report())
    delivery = site.delivery()
    assert delivery.lease_s > 3 * site.settings.scp.acse_timeout_s + 2 * site.settings.scp.network_timeout_s
    held = jobs.lease(site.database, ("deliver",), "other", delivery.lease_s, NOW)
    assert held is not None
    assert delivery.run_once(NOW + delivery.lease_s - 1) is False


@pytest.mark.parametrize("place", ["delivery-leased", "delivery-sent", "delivery-finished"])
def test_a_crash_at_any_point_leaves_exactly_one_report_at_the_archive(
    site: Site, archive: Storescp, place: str
) -> None:
    content = report()
    site.configure(pacs=archive.port)
    site.queue(content)
    (site.folder / "settings.json").write_text(site.settings.model_dump_json())
    program = textwrap.dedent(
        f"""
        import pathlib
        from dicom_node.core.database import Database
        from dicom_node.core.settings import Settings
        from dicom_node.delivery import Delivery
        from dicom_node.store import Store
        settings = Settings.model_validate_json(pathlib.Path({str(site.folder / "settings.json")!r}).read_text())
        database = Database(settings.database_url)
        Delivery(settings, database, Store(settings, database), owner="doomed").run_once({NOW})
        """
    )
    doomed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "VEILRAY_FAILPOINT": place}, cwd=Path.cwd(), check=False
    )
    assert doomed.returncode == -9
    survivor = site.delivery("survivor")
    assert survivor.run_once(NOW + survivor.lease_s + 10) is (place != "delivery-finished")
    (kept,) = archive.kept()
    assert kept.SOPInstanceUID == uid(content)
    assert [row.state for row in site.jobs()] == ["done"]
    assert site.trail() == [("report-delivered", 0)]
