"""An agent and the coordinator as processes, killed by SIGKILL where it hurts: the run comes to its signed end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from dicom_node.core.database import Database
from dicom_node.core.training_settings import PrivacySettings
from dicom_node.launch import Service
from fl_agent.coordinator.records import Records
from fl_agent.ledger.entries import State
from fl_agent.ledger.ledger import Ledger
from secure_infer.models import ModelStore, public_hex, signing_key
from secure_infer.network import Trunk
from tests.system.hospital_agent import serving

HOSPITALS = {"north": 30, "east": 50, "south": 70}
ROUNDS, SPARE, VERSION = 4, 4, "2.0.0"
#: The one whose agent is a process of its own; the others answer in this one.
MORTAL = "north"


@pytest.fixture
def services(tmp_path: Path) -> Iterator[dict[str, Service]]:
    identities = {name: public_hex(signing_key(tmp_path / f"{name}.pem")) for name in HOSPITALS}
    coordinator = public_hex(signing_key(tmp_path / "coordinator.pem"))
    sockets = {name: tmp_path / f"{name}.sock" for name in HOSPITALS}
    command = [sys.executable, "-m", "tests.system.hospital_agent", str(tmp_path / f"{MORTAL}.json")]
    found = {MORTAL: Service(MORTAL, command, tmp_path)}
    for name, patients in HOSPITALS.items():
        (tmp_path / name).mkdir()
        rules = {
            "identity_file": str(tmp_path / f"{name}.pem"), "coordinator": coordinator, "minimum_cohort": 3,
            "roster": list(identities.values()), "minimum_patients": 1,
        }  # fmt: skip
        given = {
            "folder": str(tmp_path / name), "federation": rules, "patients": patients,
            "channels": Trunk(("head",)).channels, "socket": str(sockets[name]),
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(given))
    members = "\n".join(
        f'[[members]]\nname = "{name}"\nidentity = "{identities[name]}"\npatients = {patients}\n'
        f'socket = "{sockets[name]}"'
        for name, patients in HOSPITALS.items()
    )
    (tmp_path / "coordinator.toml").write_text(
        f"""state_dir = "{tmp_path / "state"}"
key_file = "{tmp_path / "coordinator.pem"}"
publisher_key_file = "{tmp_path / "publisher.pem"}"
{members}
[population]
min_age_years = 1
max_age_years = 5
[run]
version = "{VERSION}"
delta = 1e-3
rounds = {ROUNDS}
spare = {SPARE}
taps = ["head"]
[courier]
kind = "local"
[timing]
stage_s = 10.0
contribution_s = 20.0
probe_s = 10.0
joining_s = 60.0
"""
    )
    command = [sys.executable, "-m", "fl_agent", "coordinator", "--config", str(tmp_path / "coordinator.toml")]
    found["coordinator"] = Service("coordinator", command, tmp_path)
    with ExitStack() as stack:
        for name in HOSPITALS.keys() - {MORTAL}:
            stack.enter_context(serving(tmp_path / f"{name}.json"))
        yield found
        for service in found.values():
            service.kill()


def test_whoever_is_killed_comes_back_and_the_run_ends_with_a_signed_model(
    services: dict[str, Service], tmp_path: Path
) -> None:
    agent, coordinator = services[MORTAL], services["coordinator"]
    agent.arm("agent-masked")  # counted, and its masked input never sent
    agent.start()
    deaths, deadline = 0, time.monotonic() + 150
    for place in ("coordinator-stored", None):
        coordinator.arm(place)
        coordinator.start()
        while coordinator.alive:
            assert time.monotonic() < deadline, coordinator.log_path.read_text()[-3000:]
            if not agent.alive:
                deaths += 1
                agent.arm(None)
                agent.start()
            time.sleep(0.05)
        assert coordinator.stop() == (0 if place is None else -9)
    assert deaths == 1

    publisher = public_hex(signing_key(tmp_path / "publisher.pem"))
    card = ModelStore(tmp_path / "state" / "models", [publisher]).verify(VERSION)
    assert card.privacy.epsilon <= 3.0
    with closing(Records(tmp_path / "state" / "coordinator.sqlite3")) as records:
        run = records.newest()
        assert run is not None
        assert run.training.done == ROUNDS + 1
        events = records.events(run.plan)
    rounds_in = sum(outcome == "summed" for _, outcome, _ in events)
    assert rounds_in == ROUNDS + 1
    assert len({number for number, _, _ in events}) == len(events)
    for name in HOSPITALS:
        with closing(Database(f"sqlite:///{tmp_path / name / 'site.sqlite3'}")) as database:
            entries = Ledger(database, PrivacySettings(epsilon=8.0, delta=1e-3)).entries()
        counted = {one.terms.name: one for one in entries if one.counts}
        assert len(counted) == len([one for one in entries if one.counts])  # never paid for twice
        head = counted["head"]
        assert head.state is State.SPENT
        assert ROUNDS <= head.terms.steps <= ROUNDS + SPARE
        # The round in which one hospital died gave no sum, and was paid for by all who had contributed.
        assert counted["mean feature"].terms.steps == 2
