"""Kill -9, pauses and restarts of hospital, party 1 and dealer: bundles are burned, the next query is answered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError, Unavailable
from secure_infer.protocol.messages import Masked
from tests.system.forked import ForkedService
from tests.system.roles import LARGE, Roles, ask, bundle_for, features, plain, wait_for_bundles, wait_until


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Roles]:
    """Roles of its own for a test that kills them."""
    made = Roles(tmp_path, service=ForkedService, bundle_lifetime_s=30, daily_quota=40)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def pause(pid: int) -> None:
    """Stop a process, and wait until each of its threads stands: a busy machine takes its time over the last ones."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while any(
        file.read_text().rpartition(")")[2].split()[0] != "T" for file in Path(f"/proc/{pid}/task").glob("*/stat")
    ):
        assert time.monotonic() < deadline, "the process does not stop"
        time.sleep(0.01)


def test_a_paused_party_1_is_unavailable_in_time_and_its_bundle_is_burned(fragile):
    engine = fragile.engine(prefetch=1, timeout_s=1.0)
    wait_for_bundles(engine, 1)
    bundle = engine._ready[0].session.bundle
    pause(fragile.party.pid)
    try:
        started = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            engine.infer(features())
        assert caught.value.code == "peer-timeout"
        assert time.monotonic() - started < 5.0
    finally:
        os.kill(fragile.party.pid, signal.SIGCONT)
    with pytest.raises(ProtocolError) as reused:
        engine._spend(bundle)
    assert reused.value.code == "bundle-reused"
    assert np.abs(ask(engine) - plain(fragile)).max() < 1e-4


@pytest.mark.parametrize("place", ["party1-spent", "party1-answered"])
def test_party_1_killed_in_a_query_is_unavailable_and_the_bundle_stays_burned_after_its_restart(fragile, place):
    fragile.start_party(failpoint=place)
    opening = bundle_for(fragile)
    with fragile.channel("party") as party:
        party.send(opening)
        with pytest.raises(Unavailable) as caught:
            party.receive(LARGE)
            party.send(Masked(opening.bundle, 0, bytes(1280 * 49 * 8)))
            party.receive(LARGE)
            party.receive(LARGE)
    assert caught.value.code == "connection-closed"
    fragile.start_party()
    with fragile.channel("party") as party:
        party.send(opening)
        with pytest.raises(ProtocolError) as refused:
            party.receive(LARGE)
    assert refused.value.code == "bundle-reused"
    assert np.abs(ask(fragile.engine()) - plain(fragile)).max() < 1e-4


def test_bundles_fetched_ahead_are_replaced_after_a_restart_of_party_1(fragile):
    engine = fragile.engine(prefetch=3)
    wait_for_bundles(engine, 3)
    fragile.party.kill()
    with pytest.raises(Unavailable):
        engine.infer(features())
    fragile.start_party()
    assert np.abs(engine.infer(features()).logits - plain(fragile)).max() < 1e-4
    wait_for_bundles(engine, 3)
    assert np.abs(ask(engine) - plain(fragile)).max() < 1e-4


def test_a_killed_dealer_costs_its_bundles_and_nothing_else(fragile):
    fragile.start_dealer(failpoint="dealer-dealt")
    with pytest.raises(Unavailable):
        ask(fragile.engine())
    fragile.start_dealer()
    assert np.abs(ask(fragile.engine()) - plain(fragile)).max() < 1e-4


def test_a_hospital_killed_after_its_mark_has_burned_the_bundle(fragile, tmp_path):
    given = {
        "card": str(fragile.models / "map" / "card.json"),
        "state_dir": str(fragile.folder / "hospital"),
        "seed": 1,
    }
    given["inference"] = json.loads(fragile.inference().model_dump_json())
    (tmp_path / "hospital.json").write_text(json.dumps(given))
    command = [sys.executable, "-m", "tests.system.roles", "hospital", str(tmp_path / "hospital.json")]
    environment = {**os.environ, "VEILRAY_FAILPOINT": "party0-spent"}
    ended = subprocess.run(command, capture_output=True, check=False, timeout=60, env=environment)
    assert ended.returncode == -signal.SIGKILL

    def dealt() -> list[str]:
        return [line["bundle_id"] for line in fragile.dealer.lines() if line["event"] == "bundle-dealt"]

    wait_until(lambda: bool(dealt()), "the dealer did not log the bundle")
    (lost,) = dealt()
    engine = fragile.engine()
    with pytest.raises(ProtocolError) as caught:
        engine._spend(bytes.fromhex(lost))
    assert caught.value.code == "bundle-reused"
    assert np.abs(ask(engine) - plain(fragile)).max() < 1e-4


def test_a_quota_stops_a_hospital_and_not_the_other(fragile):
    engine = fragile.engine()
    with pytest.raises(Unavailable) as caught:
        for _ in range(41):
            engine.infer(features())
    engine.close()
    assert caught.value.code == "quota-exhausted"
    assert np.abs(ask(fragile.engine(who="second")) - plain(fragile)).max() < 1e-4


def test_both_services_end_cleanly_on_sigterm_and_log_no_values(fragile):
    ask(fragile.engine())
    assert fragile.party.stop() == 0
    assert fragile.dealer.stop() == 0
    lines = [*fragile.party.lines(), *fragile.dealer.lines()]
    assert {"ready", "stopped", "bundle-dealt", "bundle-handed-over", "query-answered"} <= {x["event"] for x in lines}
    assert all("dropped" not in line for line in lines)
    assert all(len(str(value)) <= 64 for line in lines for value in line.values())
