"""A hospital's relay and the NVFlare server, killed by SIGKILL in every stage of a round: the next round succeeds.

On the way, the ledgers count what was given to lost rounds, and no mask covers two inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dicom_node.core.errors import Unavailable
from fl_agent.coordinator.patience import Timing
from fl_agent.courier.courier import Courier, Handler
from fl_agent.courier.nvflare import local
from fl_agent.courier.nvflare.wire import COORDINATOR
from fl_agent.ledger.entries import State
from fl_agent.simulate.federation import Federation
from tests.fl_agent.federations import PRIVACY, STAGES, finish, plan, reserved, sites, template
from tests.system.hostile_coordinator import HOSPITALS
from tests.system.relays import Relays
from tests.system.wiretap import Wiretap

#: Whose relay is killed.
MORTAL = "north"
#: For a frame; whoever waits for a relay that was killed waits so long.
STAGE_S = 3.0


class Carried:
    """A federation in this process, whose frames NVFlare carries and a wiretap hears."""

    def __init__(self, folder: Path, relays: Relays) -> None:
        self.relays, self.tap, self._lock = relays, Wiretap(), threading.Lock()
        for name in HOSPITALS:
            (folder / name).mkdir()
            (folder / name / "site.sqlite3").write_bytes(template())
        self.federation = Federation(
            folder, dict(zip(HOSPITALS, sites().values(), strict=True)), PRIVACY,
            timing=Timing(STAGE_S, STAGE_S, STAGE_S, joining=60.0), courier=self._courier,
        )  # fmt: skip

    def _courier(self, agents: Mapping[str, Handler]) -> Courier:
        self.relays.serve({name: self.tap.between(name, partial(self._alone, agent)) for name, agent in agents.items()})
        return self.relays.courier

    def _alone(self, agent: Handler, frame: bytes) -> bytes:
        """Let one agent compute at a time, as in processes of their own: filters of warnings are a process's."""
        with self._lock:
            return agent(frame)

    @property
    def done(self) -> int:
        """How many sums the coordinator knows."""
        run = self.federation.records.newest()
        assert run is not None
        return run.training.done

    def lose(self, stage: str, victim: str) -> str:
        """Kill a process when a stage's frame is with the agent, and return the code that the round is lost with."""
        fell: list[str] = []

        def watch(name: str, kind: str) -> None:
            if (name, kind) == (MORTAL, stage) and not fell:
                fell.append(name)
                self.relays.kill(victim)
                if victim != COORDINATOR:
                    local.start(self.relays.kits)  # at once, as systemd does

        self.tap.watch, before = watch, self.done
        with pytest.raises(Unavailable) as error:
            while self.federation.coordinator.run_once():
                assert self.done == before
        assert fell
        local.start(self.relays.kits)
        self.relays.wait_for(frozenset(HOSPITALS))
        return error.value.code

    def sum(self) -> None:
        """Come to one more sum."""
        before = self.done
        while self.done == before:
            self.federation.coordinator.run_once()


@pytest.fixture
def carried(relays: Relays) -> Iterator[Carried]:
    with TemporaryDirectory() as folder:
        one = Carried(Path(folder), relays)
        with one.federation:
            yield one
        relays.silence()


def test_a_relay_and_the_server_that_are_killed_in_every_stage_cost_the_round_and_nothing_else(carried: Carried):
    made, deaths = carried.federation, [(stage, victim) for stage in STAGES for victim in (MORTAL, COORDINATOR)]
    made.coordinator.open(plan(made, rounds=len(deaths), spare=len(deaths)))
    while made.records.newest().accepted != set(HOSPITALS):
        made.coordinator.run_once()
    for stage, victim in deaths:
        assert carried.lose(stage, victim) in {"courier", "below-threshold"}
        carried.sum()
    carried.tap.watch = lambda site, kind: None
    assert finish(made) == "finished"
    assert not made.coordinator.run_once()
    given = carried.tap.given(made.coordinator._identity.public_key().public_bytes_raw())
    for name in HOSPITALS:
        found = reserved(made, name)
        assert found == {kind: (State.SPENT, given[name, kind]) for kind in found}
        # One sum is of the mean feature; whoever died in the last three stages did so after this site had contributed.
        assert sum(steps for _, steps in found.values()) == made.records.newest().training.done + 6
    carried.tap.check_masks()
