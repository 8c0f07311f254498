"""What an operator does with a running party and dealer: lists, revocation, limits, models, figures and the audit."""

from __future__ import annotations

import datetime
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from dicom_node.core.audit import GENESIS
from dicom_node.core.database import Database, audit_event
from dicom_node.core.errors import ConfigError, IntegrityError, ProtocolError, Unavailable, VeilRayError
from dicom_node.launch import Service
from secure_infer.clear import PlaintextEngine
from secure_infer.models import ModelStore
from secure_infer.operations.trail import verify
from tests.secure_infer.small_model import PUBLISHER_HEX, publish
from tests.system.roles import MAP, Roles, ask, features, plain, wait_for_bundles, wait_until

ROLES = ("party", "dealer")
TEXTS = ("hospitals = [", 'hospitals = ["no fingerprint"]', "port = 70000")


class Operated(Roles):
    """Two services for all tests of this file: a log is read from where the test began."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, hospitals=("hospital", "second", "third", "fourth"))
        self.marks: dict[int, int] = {}

    def mark(self) -> None:
        self.marks = {one.pid: len(one.lines()) for one in (self.party, self.dealer)}

    def service(self, role: str) -> Service:
        return self.party if role == "party" else self.dealer

    def wait_for(self, role: str, event: str, count: int = 1, **fields: str) -> list[dict[str, object]]:
        """Wait for log lines of one event."""
        deadline = time.monotonic() + 60
        while True:
            service = self.service(role)
            lines = service.lines()[self.marks.get(service.pid, 0) :]
            found = [line for line in lines if line["event"] == event and fields.items() <= line.items()]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{role} did not log {count} × {event} {fields}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    made = Operated(tmp_path_factory.mktemp("operation"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def roles(running: Operated) -> Iterator[Operated]:
    running.mark()
    kept = dict(running.party_settings), dict(running.dealer_settings)
    yield running
    running.party_settings, running.dealer_settings = kept
    for role in ROLES:
        if running.service(role).alive:
            running.mark()
            running.write(role)
            running.wait_for(role, "settings-reloaded")


def rows(path: Path) -> list[dict[str, object]]:
    """The trail of a service, oldest row first: what happened, and the details."""
    database = Database(f"sqlite:///{path}")
    with database.read() as connection:
        found = connection.execute(sa.select(audit_event).order_by(audit_event.c.seq)).mappings().all()
    database.close()
    return [{"what": row["event_type"], **row["detail"]} for row in found]


def noted(path: Path, count: int, **fields: str) -> list[dict[str, object]]:
    """Wait for so many rows of a trail, and return all that there are: a row is written after answer and log line."""

    def found() -> list[dict[str, object]]:
        return [row for row in rows(path) if fields.items() <= row.items()]

    wait_until(lambda: len(found()) >= count, f"{path} has no {count} rows with {fields}")
    return found()


def ends_with(code: str, action: Callable[[], object]) -> VeilRayError:
    with pytest.raises(VeilRayError) as caught:
        action()
    assert caught.value.code == code
    return caught.value


def works(roles: Operated, who: str = "hospital") -> bool:
    return bool(np.abs(ask(roles.engine(who=who)) - plain(roles)).max() < 1e-4)


@pytest.mark.parametrize("role", ROLES)
def test_a_hospital_taken_off_the_list_is_out_without_a_restart_and_comes_back_as_easily(roles, role):
    pid = roles.service(role).pid
    kept = getattr(roles, f"{role}_settings")
    allowed = kept["hospitals"]
    engine = roles.engine(prefetch=2)
    wait_for_bundles(engine, 2)
    kept["hospitals"] = (roles.fingerprint("second"),)
    roles.write(role)
    roles.wait_for(role, "settings-reloaded")
    if role == "party":  # where its fetched bundles wait on open connections
        roles.wait_for("party", "connection-ended", 2, code="certificate-not-allowed")
    else:
        engine._drop_all()
    ends_with("certificate-not-allowed", lambda: engine.infer(features()))
    assert works(roles, "second")
    kept["hospitals"] = allowed
    roles.write(role)
    roles.wait_for(role, "settings-reloaded", 2)
    assert np.abs(ask(engine) - plain(roles)).max() < 1e-4
    assert roles.service(role).pid == pid


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_bad_settings_file_keeps_the_old_list_and_is_told(roles, role, text):
    about = {"what": "settings-not-reloaded", "code": "config"}
    before = rows(roles.trail(role)).count(about)
    roles.put(role, text)
    (line,) = roles.wait_for(role, "settings-not-reloaded")
    assert line["code"] == "config"
    assert works(roles)
    assert len(noted(roles.trail(role), before + 1, **about)) == before + 1


def test_a_setting_that_needs_a_restart_is_named_as_such(roles):
    roles.party_settings["timeout_s"] = 3.0
    roles.write("party")
    (line,) = roles.wait_for("party", "restart-needed")
    assert "timeout_s" in line["message"]


@pytest.mark.parametrize("role", ROLES)
def test_a_revoked_certificate_is_out_without_a_restart_and_loses_its_open_connections(roles, role):
    who = {"party": "third", "dealer": "fourth"}[role]
    engine = roles.engine(who=who, prefetch=2)
    wait_for_bundles(engine, 2)
    roles.authority.revoke(roles.tls[who].certificate)
    for one in ROLES:  # both read the same list
        roles.wait_for(one, "certificates-reloaded")
    roles.wait_for("party", "connection-ended", 2, code="certificate-revoked")
    engine.close()
    with pytest.raises(ProtocolError) as caught, roles.channel(role, who) as channel:
        channel.receive(64)
    assert "revoked" in str(caught.value)
    roles.wait_for(role, "connection-refused", code="certificate-revoked")
    assert works(roles, "second")
    ended = {"what": "connection-ended", "fingerprint": roles.fingerprint(who), "code": "certificate-revoked"}
    assert len(noted(roles.trail("party"), 2, **ended)) == 2


def test_an_expired_list_lets_nobody_in_until_it_is_renewed_and_a_bad_one_keeps_the_old(roles):
    roles.authority.revoke(lifetime=-datetime.timedelta(hours=1))
    for one in ROLES:  # each must have looked, or it would take this list and the next for one change
        roles.wait_for(one, "certificates-reloaded")
    with pytest.raises(VeilRayError):
        works(roles)
    roles.wait_for("dealer", "connection-refused", code="crl-out-of-date")
    (roles.folder / "pki" / "crl.pem").write_text("not a list")
    for one in ROLES:
        roles.wait_for(one, "certificates-not-reloaded", code="tls-files")
    with pytest.raises(VeilRayError):
        works(roles)
    roles.authority.revoke()
    for one in ROLES:
        roles.wait_for(one, "certificates-reloaded", 2)
    assert works(roles)


def test_two_versions_are_served_at_once_and_a_retired_one_ends_at_a_reload(roles):
    card = publish(roles.models, MAP, seed=9, version="leaving")
    reference = PlaintextEngine(MAP, roles.weights("leaving")).infer(features()).logits
    engine = roles.engine(card)
    assert np.abs(engine.infer(features()).logits - reference).max() < 1e-4
    assert works(roles)
    ModelStore(roles.models, [PUBLISHER_HEX]).retire("leaving")
    os.kill(roles.party.pid, signal.SIGHUP)
    roles.wait_for("party", "model-withdrawn", model="leaving")
    error = ends_with("unknown-model", lambda: engine.infer(features()))
    assert isinstance(error, ProtocolError)
    engine.close()
    assert works(roles)


def test_a_certificate_that_asks_too_fast_is_told_so_also_after_a_restart_and_the_other_is_not(roles):
    roles.party_settings |= {"queries_per_minute": 0.5, "burst": 3}
    roles.write("party")
    roles.wait_for("party", "settings-reloaded")
    engine = roles.engine()
    for _ in range(3):
        engine.infer(features())
    for _ in range(2):
        assert isinstance(ends_with("rate-limited", lambda: engine.infer(features())), Unavailable)
    assert works(roles, "second")
    assert noted(roles.trail("party"), 1, code="rate-limited")
    roles.start_party()  # the process before it has written all its rows
    engine.close()
    ends_with("rate-limited", lambda: ask(roles.engine()))
    # One for each process and minute, however often it asks.
    assert len(noted(roles.trail("party"), 2, code="rate-limited")) == 2


def figures(roles: Operated, role: str) -> dict[str, float]:
    (ready,) = (line for line in roles.service(role).lines() if line["event"] == "metrics-ready")
    text = httpx.get(f"http://127.0.0.1:{ready['port']}/metrics").raise_for_status().text
    samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_figures_count_what_happened_and_name_hospitals_as_the_settings_do(roles):
    roles.party_settings |= {"names": {roles.fingerprint("hospital"): "north"}, "daily_quota": 4000}
    roles.write("party")
    roles.wait_for("party", "settings-reloaded")
    before = figures(roles, "party")
    engine = roles.engine()
    for _ in range(3):
        engine.infer(features())
    engine.close()
    assert works(roles, "second")
    ends_with("certificate-not-allowed", lambda: ask(roles.engine(who="stranger")))
    second, first = (roles.fingerprint(name)[:12] for name in ("second", "hospital"))
    deadline = time.monotonic() + 60
    last = f'veilray_requests_total{{code="answered",kind="query",peer="{second}"}}'
    while (found := figures(roles, "party")).get(last) == before.get(last) or found["veilray_connections"]:
        assert time.monotonic() < deadline, "the last query was not counted"
        time.sleep(0.05)
    grown = {name: value - before.get(name, 0) for name, value in found.items()}
    assert grown['veilray_requests_total{code="answered",kind="query",peer="north"}'] == 3
    assert grown[last] == 1
    assert grown['veilray_seconds_count{phase="online"}'] == grown['veilray_seconds_count{phase="offline"}'] == 4
    assert grown['veilray_quota_left{peer="north"}'] == -3
    assert 3000 < found['veilray_quota_left{peer="north"}'] < 4000
    assert grown['veilray_bytes_total{direction="received"}'] > 4 * 49 * 1280 * 8
    assert (found["veilray_models"], found["veilray_connections"]) == (2, 0)
    dealt = figures(roles, "dealer")
    assert dealt[f'veilray_requests_total{{code="dealt",kind="bundle",peer="{first}"}}'] >= 3
    everything = " ".join([*found, *dealt])
    assert roles.fingerprint("hospital") not in everything


def test_both_trails_name_each_bundle_and_an_altered_row_is_found(roles):
    assert works(roles)
    assert roles.party.stop() == 0
    assert roles.dealer.stop() == 0
    query = [row for row in rows(roles.trail("party")) if row["what"] == "query-answered"][-1]
    assert (query["model"], query["fingerprint"]) == ("map", roles.fingerprint("hospital"))
    dealt = {row["what"]: row for row in rows(roles.trail("dealer")) if row.get("bundle_id") == query["bundle_id"]}
    assert dealt["bundle-dealt"]["fingerprint"] == roles.fingerprint("hospital")
    assert dealt["bundle-handed-over"]["fingerprint"] == roles.fingerprint("party")
    for role in ROLES:
        path = roles.trail(role)
        assert (rows(path)[0]["what"], rows(path)[-1]["what"]) == ("started", "stopped")
        count, head = verify(path)
        assert count == len(rows(path))
        assert head != GENESIS
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TRIGGER audit_event_no_update")
            connection.execute("UPDATE audit_event SET actor = 'somebody else' WHERE seq = 2")
        connection.close()
        with pytest.raises(IntegrityError):
            verify(path)
    with pytest.raises(ConfigError):
        verify(roles.folder / "absent")


def test_a_hospital_takes_up_a_new_list_by_itself_and_asks_nobody_whose_certificate_is_on_it(tmp_path):
    made = Roles(tmp_path)
    made.tls["hospital"] = made.tls["hospital"].model_copy(update={"crl": made.tls["party"].crl})
    try:
        made.start()
        engine = made.engine(prefetch=2)
        assert np.abs(engine.infer(features()).logits - plain(made)).max() < 1e-4
        for role, name in (("party", "party 1"), ("dealer", "the dealer")):
            wait_for_bundles(engine, 2 if role == "party" else 0)  # what was fetched before counts no more
            made.authority.revoke(made.tls[role].certificate)
            error = ends_with("certificate-revoked", lambda: engine.infer(features()))
            assert name in str(error)
        engine.close()
    finally:
        made.stop()
