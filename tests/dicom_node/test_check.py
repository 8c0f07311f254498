"""`dicom-node check` against real files, databases and peers: what is well, and what each failure tells to do."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dicom_node.check import Check, checks, effective
from dicom_node.core import tls
from dicom_node.core.database import Database
from dicom_node.core.pki import Authority
from dicom_node.core.settings import Settings
from dicom_node.scp import Scp
from dicom_node.store import Store
from tests.dicom_node.peers import free_port, scripted_scp

HERE = {"ae_title": "MODALITY1", "addresses": ["127.0.0.1"]}


def settings(folder: Path, **sections: Any) -> Settings:
    base: dict[str, Any] = {
        "site": {"name": "St Example", "state_dir": folder},
        "inference": {"engine": "plaintext"},
        "scp": {"port": 0, "peers": [HERE]},
    }
    return Settings.model_validate(base | sections)


def look(wanted: Settings) -> dict[str, Check]:
    return {one.name: one for one in checks(wanted)}


def migrated(wanted: Settings) -> Settings:
    database = Database(wanted.database_url)
    database.migrate()
    database.close()
    return wanted


@contextmanager
def mutual_tls(authority: Authority, *, closes: bool = False) -> Iterator[tuple[int, str]]:
    """A service of another organisation: its port, and the fingerprint that was agreed on."""
    own = authority.issue("party")
    context = tls.server_context(own)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with plain:
                try:
                    with context.wrap_socket(plain, server_side=True) as connection:
                        connection.settimeout(5)
                        if not closes:
                            connection.recv(1)
                except (ssl.SSLError, OSError):
                    return  # the caller went away: what it thought of us is what the test asks

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], tls.fingerprint(own.certificate)
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def http(status: int, seen: list[dict[str, str]]) -> Iterator[str]:
    """A web service that answers every GET with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path} | dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}/dicom-web"
        service.shutdown()
        thread.join(10)


def encrypted(authority: Authority, port: int, fingerprint: str) -> dict[str, Any]:
    peer = {"host": "127.0.0.1", "port": port, "fingerprint": fingerprint}
    away = {"host": "127.0.0.1", "port": free_port(), "fingerprint": fingerprint}
    return {"party": peer, "dealer": away, "tls": authority.issue("site").model_dump(), "timeout_s": 5}


def test_a_site_that_is_well_set_up_passes_every_check(tmp_path: Path) -> None:
    found = look(migrated(settings(tmp_path, training={"films": tmp_path})))
    assert [one for one in found.values() if not one.ok] == []
    assert "this version's schema (SQLite)" in found["database"].sentence
    assert "0 rows" in found["audit trail"].sentence
    assert list(tmp_path.glob(".check*")) == []


def test_before_the_first_start_it_says_what_makes_the_database_and_makes_none(tmp_path: Path) -> None:
    found = look(settings(tmp_path))
    assert not found["database"].ok
    assert "start dicom-node serve once" in found["database"].sentence
    assert list(tmp_path.iterdir()) == []


def test_the_settings_are_told_with_their_defaults_and_without_passwords(tmp_path: Path) -> None:
    orthanc = {"url": "http://admin:hunter2@127.0.0.1:8042", "password_file": tmp_path / "password"}
    for url in ("postgresql+psycopg://veilray:hunter2@db/veilray", "postgresql+psycopg:///veilray?password=hunter2"):
        told = dict(effective(settings(tmp_path, orthanc=orthanc, database={"url": url})))
        assert "hunter2" not in str(told)
        assert "db/veilray" in told["database"] or "///veilray" in told["database"]
        assert f"password_file = {tmp_path / 'password'}" in told["orthanc"]
        assert "peers[0].ae_title = 'MODALITY1'" in told["scp"]
        assert "maximum_pdu_size = 131072" in told["scp"]


def older_schema(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")


def altered_trail(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO audit_event VALUES (1, 0, '110100', 'started', 'E', 0, 'nobody', NULL, '{}', '0', '0')"
        )


@pytest.mark.parametrize(
    ("spoil", "name", "what_to_do"),
    [(older_schema, "database", "stop all services"), (altered_trail, "audit trail", "restore it from a backup")],
)
def test_records_that_cannot_be_trusted_fail(
    tmp_path: Path, spoil: Callable[[Database], None], name: str, what_to_do: str
) -> None:
    wanted = migrated(settings(tmp_path))
    database = Database(wanted.database_url)
    spoil(database)
    database.close()
    found = look(wanted)
    assert [one.name for one in found.values() if not one.ok] == [name]
    assert what_to_do in found[name].sentence


def test_a_file_that_is_no_database_fails(tmp_path: Path) -> None:
    (tmp_path / "veilray.sqlite3").write_bytes(b"no database " * 100)
    found = look(settings(tmp_path))
    assert not found["database"].ok
    assert not found["audit trail"].ok


@pytest.mark.parametrize(
    ("sections", "name", "what_to_do"),
    [
        ({"site": {"name": "x", "state_dir": "/nowhere/at/all"}}, "state folder", "create it"),
        ({"scp": {"port": 0, "minimum_free_bytes": 10**18, "peers": [HERE]}}, "state folder", "free space"),
        ({"scp": {"port": 0}}, "senders", "[[scp.peers]]"),
        ({"scp": {"port": 0, "peers": [HERE | {"addresses": ["ct.local"]}]}}, "senders", "IP addresses or networks"),
        ({"orthanc": {"url": "http://127.0.0.1:1"}}, "Orthanc", "Orthanc"),
        ({"orthanc": {"url": "http://127.0.0.1:1", "password_file": "/nowhere"}}, "files", "orthanc.password_file"),
        ({"training": {"films": "/nowhere"}}, "files", "training.films"),
        ({"database": {"url": "nosql://x"}}, "database", "check database.url"),
    ],
)
def test_each_fault_is_one_sentence_that_says_what_to_do(
    tmp_path: Path, sections: dict[str, Any], name: str, what_to_do: str
) -> None:
    found = look(settings(tmp_path, **sections))
    assert not found[name].ok
    assert what_to_do in found[name].sentence
    assert "\n" not in found[name].sentence


def test_a_key_that_every_user_may_read_fails(tmp_path: Path) -> None:
    own = Authority(tmp_path / "pki").issue("site")
    wanted = settings(tmp_path, scp={"port": 0, "peers": [HERE], "tls": own.model_dump()})
    assert look(wanted)["files"].ok
    own.key.chmod(0o604)
    found = look(wanted)["files"]
    assert not found.ok
    assert "scp.tls.key" in found.sentence


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("address", ["127.0.0.1", "10.9.9.9"], ids=["listed", "unlisted"])
def test_our_own_running_service_is_told_from_a_stranger_on_its_port(
    tmp_path: Path, secured: bool, address: str
) -> None:
    section: dict[str, Any] = {"port": free_port(), "peers": [HERE | {"addresses": [address]}]}
    authority = Authority(tmp_path / "pki")
    if secured:
        section["tls"] = authority.issue("node", ("node.example",)).model_dump()
    wanted = migrated(settings(tmp_path, scp=section))
    assert "is free" in look(wanted)["SCP port"].sentence
    database = Database(wanted.database_url)
    scp = Scp(wanted, Store(wanted, database))
    scp.start()
    ours = look(wanted)["SCP port"]
    scp.stop()
    database.close()
    assert ours.ok, ours.sentence
    assert "answers" in ours.sentence
    with socket.create_server(("127.0.0.1", section["port"])) as stranger:

        def hang_up() -> None:
            stranger.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        found = look(wanted)["SCP port"]
        thread.join(10)
    assert not found.ok
    assert "another program holds" in found.sentence


def test_every_dicom_destination_is_echoed(tmp_path: Path) -> None:
    with scripted_scp(None, [], ae_title="PACS", require_called=True) as port:
        there = {"kind": "dicom", "host": "127.0.0.1", "port": port}
        names = [
            there | {"name": "pacs", "ae_title": "PACS"},
            there | {"name": "misnamed", "ae_title": "OTHER"},
            there | {"name": "away", "ae_title": "PACS", "port": free_port()},
        ]
        found = look(settings(tmp_path, delivery={"destinations": names}))
    assert found["destination pacs"].ok
    assert "called AE title" in found["destination misnamed"].sentence
    assert "does not answer" in found["destination away"].sentence
    assert not found["destination misnamed"].ok
    assert not found["destination away"].ok


@pytest.mark.parametrize(("status", "ok"), [(200, True), (405, True), (401, False), (404, False), (503, False)])
def test_a_dicomweb_destination_is_asked_with_its_token(tmp_path: Path, status: int, ok: bool) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    seen: list[dict[str, str]] = []
    with http(status, seen) as url:
        destination = {"name": "web", "kind": "stow", "url": url, "token_file": token}
        found = look(settings(tmp_path, delivery={"destinations": [destination]}))
    assert found["destination web"].ok is ok
    assert seen[0]["path"] == "/dicom-web/studies?limit=1"
    assert seen[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(found)


def test_orthanc_is_asked_for_its_version(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []
    with http(401, seen) as url:
        found = look(settings(tmp_path, orthanc={"url": url}))
    assert not found["Orthanc"].ok
    assert "orthanc.username" in found["Orthanc"].sentence


def test_party_and_dealer_are_dialled_and_known_by_their_fingerprint(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    with mutual_tls(authority) as (port, fingerprint):
        found = look(settings(tmp_path, inference=encrypted(authority, port, fingerprint)))
    assert found["party"].ok, found["party"].sentence
    assert not found["dealer"].ok
    assert "cannot reach 127.0.0.1" in found["dealer"].sentence


def test_a_party_with_another_certificate_or_that_does_not_know_us_fails(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    with mutual_tls(authority) as (port, _):
        found = look(settings(tmp_path, inference=encrypted(authority, port, "0" * 64)))
    assert not found["party"].ok
    assert "compare the fingerprint" in found["party"].sentence
    with mutual_tls(authority, closes=True) as (port, fingerprint):
        found = look(settings(tmp_path, inference=encrypted(authority, port, fingerprint)))
    assert not found["party"].ok
    assert tls.fingerprint(tmp_path / "pki" / "site.pem") in found["party"].sentence
