"""Agent and coordinator as processes, killed by SIGKILL at every stage: the run comes to its signed end.

On the way, the ledgers never understate and no mask covers two inputs.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from dicom_node.core.database import Database
from dicom_node.core.errors import Unavailable
from dicom_node.core.failpoint import Place
from dicom_node.core.settings import read
from dicom_node.core.training_settings import PrivacySettings
from fl_agent.coordinator import service
from fl_agent.coordinator.candidate import Publisher
from fl_agent.coordinator.coordinator import Coordinator
from fl_agent.coordinator.records import Records
from fl_agent.coordinator.settings import CoordinatorSettings
from fl_agent.courier import unix
from fl_agent.courier.local import LocalCourier
from fl_agent.learning.terms import DESCENT, MEAN
from fl_agent.ledger.entries import State
from fl_agent.ledger.ledger import Ledger
from secure_infer.models import ModelStore, public_hex, signing_key
from secure_infer.network import Trunk
from tests.fl_agent.federations import STAGES, counted
from tests.system import hospital_agent
from tests.system.forked import Forked
from tests.system.wiretap import Wiretap

HOSPITALS = {"north": 30, "east": 50, "south": 70}
ROUNDS, SPARE, VERSION = 3, 14, "2.0.0"
#: Whose agent is killed.
MORTAL = "north"
#: Fail points of the agent, in the order in which a run comes to them. The first sum is paid for twice and no more.
JOINING: tuple[Place, ...] = ("ledger-written", "ledger-committed", "agent-reserved", "agent-accepted")
FIRST_SUM: tuple[Place, ...] = ("agent-entered", "agent-shared", "agent-counted")
DESCENDING: tuple[Place, ...] = ("ledger-written", "ledger-committed", "agent-begun", "agent-counted", "agent-masked",
                                 "agent-confirmed", "agent-unmasked")  # fmt: skip
SETTLING: tuple[Place, ...] = ("ledger-written", "ledger-committed", "agent-settled")
#: Fail points of the coordinator and, in capitals, frames on whose arrival at a site it is killed, in that order.
COORDINATOR: tuple[Place | str, ...] = (
    "coordinator-opened", "PLAN", "coordinator-numbered", "ROUND", "KeyList", "coordinator-summed",
    "coordinator-stored", "CiphertextList", "SurvivorList", "SignatureList", "coordinator-recorded",
    "coordinator-published", "END",
)  # fmt: skip


def agent(file: Path) -> int:
    return hospital_agent.main(str(file))


class Consortium:
    """Agents that are processes, whose frames a wiretap hears, and the settings of their coordinator."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tap = folder, Wiretap()
        self.settings = folder / "coordinator.toml"
        self.coordinator = public_hex(signing_key(folder / "coordinator.pem"))
        identities = {name: public_hex(signing_key(folder / f"{name}.pem")) for name in HOSPITALS}
        self.agents = {name: self._agent(name, list(identities.values())) for name in HOSPITALS}
        members = "\n".join(
            f'[[members]]\nname = "{name}"\nidentity = "{identities[name]}"\npatients = {patients}\n'
            f'socket = "{folder / name}.tap"'
            for name, patients in HOSPITALS.items()
        )
        self.settings.write_text(
            f"""state_dir = "{folder / "state"}"
key_file = "{folder / "coordinator.pem"}"
publisher_key_file = "{folder / "publisher.pem"}"
{members}
[population]
min_age_years = 1
max_age_years = 5
[run]
version = "{VERSION}"
delta = 1e-3
rounds = {ROUNDS}
spare = {SPARE}
trunk = {{name = "efficientnet-lite0", taps = ["head"], side = 224, regions = 1}}
[courier]
kind = "local"
[timing]
stage_s = 20.0
contribution_s = 20.0
probe_s = 10.0
joining_s = 120.0
"""
        )

    def _agent(self, name: str, roster: list[str]) -> Forked:
        (self.folder / name).mkdir()
        rules = {
            "identity_file": str(self.folder / f"{name}.pem"), "coordinator": self.coordinator, "minimum_cohort": 3,
            "roster": roster, "minimum_patients": 1,
        }  # fmt: skip
        given = {
            "folder": str(self.folder / name), "federation": rules, "patients": HOSPITALS[name],
            "channels": Trunk(("head",)).channels, "socket": str(self.socket(name)),
        }  # fmt: skip
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(given))
        return Forked(agent, file, self.folder / f"{name}.log")

    def socket(self, name: str) -> Path:
        return self.folder / f"{name}.sock"

    def start(self, name: str, place: Place | None = None) -> None:
        """Start an agent, wait for it, and bring it all frames of the newest round again, as a courier may."""
        frames = self.tap.round_of(name)
        self.agents[name].start(place)
        deadline = time.monotonic() + 60
        while not unix.served(self.socket(name)):
            assert time.monotonic() < deadline, self.agents[name].log.read_text()[-3000:]
            time.sleep(0.01)
        again = self.tap.between(name, self.carrier(name))
        for frame in frames:
            again(frame)

    def carrier(self, name: str) -> partial[bytes]:
        return partial(unix.ask, self.socket(name), timeout_s=20.0)

    def ledger(self, name: str) -> dict[str, tuple[State, int]]:
        """What a site's ledger counts at this moment, by kind of sum."""
        with closing(Database(f"sqlite:///{self.folder / name / 'site.sqlite3'}")) as database:
            return counted(Ledger(database, PrivacySettings(epsilon=8.0, delta=1e-3)))

    def check(self) -> None:
        """Show that each site's ledger counts all that it gave, and that no mask was used twice."""
        given = self.tap.given(bytes.fromhex(self.coordinator))
        for name in HOSPITALS:
            ledger = self.ledger(name)
            assert all(ledger[kind][1] >= times for (giver, kind), times in given.items() if giver == name)
        self.tap.check_masks()

    def check_end(self) -> None:
        """Show that the run is whole: a signed model of all rounds, numbers used once, and ledgers that are settled."""
        publisher = public_hex(signing_key(self.folder / "publisher.pem"))
        card = ModelStore(self.folder / "state" / "models", [publisher]).verify(VERSION)
        assert card.privacy.epsilon <= 3.0
        with closing(Records(self.folder / "state" / "coordinator.sqlite3")) as records:
            run = records.newest()
            assert run is not None
            assert run.training.done == ROUNDS + 1
            assert not run.untold
            events = records.events(run.plan)
        assert sum(outcome == "summed" for _, outcome, _ in events) == ROUNDS + 1
        assert len({number for number, _, _ in events}) == len(events)
        for name in HOSPITALS:
            ledger = self.ledger(name)
            assert {state for state, _ in ledger.values()} == {State.SPENT}
            assert ledger[MEAN][1] <= 2
            assert ledger[DESCENT][1] <= ROUNDS + SPARE
        self.check()


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    one = Consortium(tmp_path)
    with ExitStack() as stack:
        for name, process in one.agents.items():
            stack.callback(process.kill)
            stack.enter_context(unix.serve(tmp_path / f"{name}.tap", one.tap.between(name, one.carrier(name))))
            one.start(name)
        yield one


def test_an_agent_that_is_killed_at_every_stage_comes_back_and_is_in_the_signed_model(consortium: Consortium) -> None:
    settings, mortal = read(consortium.settings, CoordinatorSettings), consortium.agents[MORTAL]
    key, publisher = signing_key(settings.key_file), signing_key(settings.publisher_key_file)
    store = ModelStore(settings.state_dir / "models", [public_hex(publisher)])
    courier = LocalCourier({one.name: one.socket for one in settings.members if one.socket})
    records = Records(settings.state_dir / "coordinator.sqlite3")

    def coordinator() -> Coordinator:
        chosen = Publisher(store, publisher, settings.population)
        return Coordinator(key, records, courier, settings.state_dir / "runs", chosen, settings.timing.timing())

    def run(made: Coordinator) -> bool:
        """Go on until the agent is dead or there is nothing left to do; tell whether it is dead."""
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, mortal.log.read_text()[-3000:]
            try:
                busy = made.run_once()
            except Unavailable:
                busy = True
            if mortal.ended(0.1 if busy else 5.0) is not None or not busy:
                return not mortal.alive

    def dies(made: Coordinator) -> None:
        assert run(made)
        assert mortal.ended(0) == -signal.SIGKILL
        consortium.check()

    with closing(records), closing(courier):
        made = coordinator()
        made.open(service.plan_of(settings))
        for place in (*JOINING, *FIRST_SUM, *DESCENDING):
            consortium.start(MORTAL, place)
            dies(made)
        for stage in STAGES:  # it has answered, and holds its secrets of the round in memory
            consortium.start(MORTAL)
            consortium.tap.watch = lambda name, kind, stage=stage: (
                mortal.kill() if (name, kind) == (MORTAL, stage) else None
            )
            dies(made)
            consortium.tap.watch = lambda name, kind: None
        for place in SETTLING:
            consortium.start(MORTAL, place)
            dies(made)
            made = coordinator()  # who is silent at the end is told by the next process
        consortium.start(MORTAL)
        assert not run(made)
    consortium.check_end()
    # Twice a gradient was begun that never left.
    given = consortium.tap.given(bytes.fromhex(consortium.coordinator))
    assert consortium.ledger(MORTAL)[DESCENT][1] >= given[MORTAL, DESCENT] + 2
    assert consortium.ledger(MORTAL)[MEAN] == (State.SPENT, 2)


def test_a_coordinator_that_is_killed_at_every_stage_goes_on_to_the_signed_model(consortium: Consortium) -> None:
    process = Forked(service.serve, consortium.settings, consortium.folder / "coordinator.log")
    for step in (*COORDINATOR, None):
        failing = step if step is not None and step.startswith("coordinator-") else None
        consortium.tap.watch = lambda _, kind, step=step: process.kill() if kind == step else None
        process.start(failing)
        assert process.ended(60.0) == (0 if step is None else -signal.SIGKILL), process.log.read_text()[-3000:]
        consortium.check()
    consortium.check_end()
    assert all(one.alive for one in consortium.agents.values())
