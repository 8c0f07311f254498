"""What machines are told: health and figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dicom_node.core import jobs
from dicom_node.core.database import Database
from tests.dicom_node.web import records
from tests.dicom_node.web.conftest import Site


def test_a_site_with_work_and_room_is_healthy(busy: Site) -> None:
    answer = busy.ask("/healthz")
    assert answer.status_code == 200
    assert answer.json()["ok"] is True
    assert answer.json()["database_writable"] is True
    assert answer.json()["free_disk_bytes"] > 0


def test_a_database_that_cannot_be_written_is_unhealthy(site: Site) -> None:
    with site.database.write() as connection:
        connection.exec_driver_sql("CREATE TRIGGER stuck BEFORE INSERT ON fact BEGIN SELECT RAISE(ABORT, 'full'); END")
    answer = site.ask("/healthz")
    assert answer.status_code == 503
    assert answer.json()["database_writable"] is False


def test_a_nearly_full_disk_is_unhealthy(tmp_path: Path) -> None:
    settings = records.site(tmp_path, scp={"minimum_free_bytes": 10**18})
    database = Database(settings.database_url)
    database.migrate()
    answer = Site(settings, database).ask("/healthz")
    database.close()
    assert answer.status_code == 503
    assert "Free space" in answer.json()["problems"][0]


def test_a_lease_that_nobody_took_over_is_unhealthy_and_a_fresh_one_is_not(site: Site) -> None:
    with site.database.write() as connection:
        jobs.add(connection, "classify", "k", {}, records.NOW)
    jobs.lease(site.database, ("classify",), "worker", 60.0, records.NOW)
    for later, status in ((0, 200), (110, 200), (130, 503)):
        site.now = records.NOW + later
        assert site.ask("/healthz").status_code == status, later


def test_a_flood_of_health_questions_writes_once_in_five_seconds(site: Site) -> None:
    for _ in range(3):
        site.ask("/healthz")
    with site.database.write() as connection:
        connection.exec_driver_sql("CREATE TRIGGER stuck BEFORE UPDATE ON fact BEGIN SELECT RAISE(ABORT, 'full'); END")
    site.now += 4.9
    assert site.ask("/healthz").status_code == 200
    site.now += 0.2
    assert site.ask("/healthz").status_code == 503


@pytest.mark.parametrize(
    "line",
    [
        "veilray_instances_total 16",
        'veilray_refusals_total{code="age"} 2',
        'veilray_rejections_total{code="sop-class",status="0x0122"} 1',
        'veilray_jobs{kind="deliver",state="done"} 10',
        'veilray_jobs{kind="classify",state="failed"} 1',
        "veilray_delivery_age_seconds 1789.6",
        'veilray_delivery_seconds{quantile="0.5"} 10.9',
        'veilray_classify_seconds{stage="engine",quantile="0.5"} 0.212',
    ],
)
def test_figures_count_what_happened(busy: Site, line: str) -> None:
    answer = busy.ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert line in answer.text.splitlines()


def test_figures_are_in_the_prometheus_text_format_and_quote_labels(site: Site) -> None:
    with site.database.write() as connection:
        records.reject(connection, 1.0, 0xC000, 'odd"\\\ncode', "message")
    text = site.ask("/metrics").text
    assert 'code="odd\\"\\\\\\ncode"' in text
    sample = re.compile(r'veilray_\w+(\{\w+="(\\.|[^"\\])*"(,\w+="(\\.|[^"\\])*")*\})? -?[\d.e+-]+')
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line
