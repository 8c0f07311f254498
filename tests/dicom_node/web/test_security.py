"""The pages against rebinding, framing, injection and forged forms."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from dicom_node.core import audit
from dicom_node.core.database import job
from dicom_node.core.settings import WebSettings
from dicom_node.web.security import allowed_hosts
from tests.dicom_node.web import records
from tests.dicom_node.web.conftest import Site


def token(site: Site) -> str:
    return site.ask("/jobs?view=failed").text.partition('name="token" value="')[2].partition('"')[0]


def state(site: Site, number: int) -> str:
    with site.database.read() as connection:
        return connection.execute(sa.select(job.c.state).where(job.c.id == number)).scalar_one()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "127.0.0.2"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/static/style.css"])
def test_an_unknown_host_name_is_refused(busy: Site, host: str, path: str) -> None:
    answer = busy.ask(path, headers={"Host": host})
    assert answer.status_code == 421
    assert "Study 1" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]", "[::1]:8080"])
def test_the_local_names_are_answered(site: Site, host: str) -> None:
    assert site.ask("/", headers={"Host": host}).status_code == 200


def test_the_configured_host_is_a_known_name_and_a_wildcard_is_not() -> None:
    local = {"localhost", "127.0.0.1", "[::1]"}
    assert allowed_hosts(WebSettings(host="Node.Hospital.example")) == local | {"node.hospital.example"}
    assert allowed_hosts(WebSettings(host="fd00::7")) == local | {"[fd00::7]"}
    assert allowed_hosts(WebSettings(host="10.1.2.3")) == local | {"10.1.2.3"}
    assert allowed_hosts(WebSettings(host="0.0.0.0")) == allowed_hosts(WebSettings(host="::")) == local


@pytest.mark.parametrize("path", ["/", "/jobs", "/nowhere", "/static/style.css", "/healthz"])
def test_every_answer_carries_the_security_headers(busy: Site, path: str) -> None:
    headers = busy.ask(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_the_only_cookie_is_the_forms_and_stays_with_the_site(busy: Site) -> None:
    for path in ("/", "/studies/1", "/refusals", "/audit", "/status", "/healthz", "/metrics", "/static/style.css"):
        assert "set-cookie" not in busy.ask(path).headers
    cookie = busy.ask("/jobs").headers["set-cookie"]
    assert cookie.startswith("veilray_csrf=")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_try_again_puts_the_job_back_once_and_is_audited(busy: Site) -> None:
    number = records.failed_jobs(busy.database)[0]
    form = {"token": token(busy)}
    answer = busy.ask(f"/jobs/{number}/again", "POST", data=form)
    assert answer.status_code == 303
    assert f"Job {number} was put back" in busy.ask(answer.headers["location"]).text
    assert state(busy, number) == "waiting"
    with busy.database.read() as connection:
        newest = connection.execute(sa.text("SELECT event_type, detail FROM audit_event ORDER BY seq DESC")).first()
        audit.verify(connection)
    assert newest is not None
    assert newest.event_type == "job-requeued"
    assert f'"job": {number}' in newest.detail
    assert busy.ask(f"/jobs/{number}/again", "POST", data=form).status_code == 409
    assert busy.ask("/jobs/999/again", "POST", data=form).status_code == 409


def test_a_form_without_its_token_is_refused(busy: Site) -> None:
    number = records.failed_jobs(busy.database)[0]
    right = token(busy)
    forged = [
        ({"data": {}}, busy.cookies),
        ({"data": {"token": "0" * 64}}, busy.cookies),
        ({"data": {"token": "ä" * 64}}, busy.cookies),
        ({"data": {"token": right}}, {}),
        ({"data": {"token": right}}, {"veilray_csrf": "x" * 43}),
        ({"data": {"token": right}, "headers": {"Sec-Fetch-Site": "cross-site"}}, busy.cookies),
    ]
    for options, cookies in forged:
        busy.cookies = dict(cookies)
        assert busy.ask(f"/jobs/{number}/again", "POST", **options).status_code == 403
    assert state(busy, number) == "failed"


def test_a_form_larger_than_ours_is_refused(busy: Site) -> None:
    number = records.failed_jobs(busy.database)[0]
    form = {"token": token(busy), "more": "x" * 5000}
    assert busy.ask(f"/jobs/{number}/again", "POST", data=form).status_code == 413
    assert state(busy, number) == "failed"


def test_a_fault_is_a_quiet_page_with_all_headers(busy: Site) -> None:
    with busy.database.write() as connection:
        connection.exec_driver_sql("UPDATE job SET payload = '[\"PatientName^Planted\"]' WHERE kind = 'deliver'")
    answer = busy.ask("/jobs?view=done")
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "Planted" not in answer.text
    assert "Traceback" not in answer.text
    assert "frame-ancestors" in answer.headers["content-security-policy"]


def test_a_database_that_is_away_is_said_with_503(site: Site) -> None:
    with site.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE instance RENAME TO elsewhere")
        connection.exec_driver_sql("ALTER TABLE job RENAME TO gone")
    answer = site.ask("/jobs")
    assert answer.status_code == 503
    assert "cannot be used" in answer.text


@pytest.mark.parametrize(
    "path", ["/static/", "/static", "/static/../app.py", "/static/%2e%2e/app.py", "/docs", "/openapi.json"]
)
def test_nothing_but_the_pages_and_their_files_is_served(site: Site, path: str) -> None:
    assert site.ask(path).status_code == 404
