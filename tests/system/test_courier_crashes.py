"""A hospital's relay and the NVFlare server, killed by SIGKILL at every frame of a run: it goes on to its end.

On the way, the ledgers count what was given to lost rounds, and no mask covers two inputs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dicom_node.core.errors import Unavailable
from fl_agent.coordinator.patience import Timing
from fl_agent.coordinator.records import Run
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
#: For the answers to a frame: longer than a relay or the server takes to be back, so that who waits so long is seen.
STAGE_S = 120.0


class Carried:
    """A federation in this process, whose frames NVFlare carries and a wiretap hears."""

    def __init__(self, folder: Path, relays: Relays) -> None:
        self.relays, self.tap, self._lock = relays, Wiretap(), threading.Lock()
        for name in HOSPITALS:
            (folder / name).mkdir()
            (folder / name / "site.sqlite3").write_bytes(template())
        self.federation = Federation(
            folder, dict(zip(HOSPITALS, sites().values(), strict=True)), PRIVACY,
            timing=Timing(STAGE_S, STAGE_S, STAGE_S, joining=4 * STAGE_S), courier=self._courier,
        )  # fmt: skip

    def _courier(self, agents: Mapping[str, Handler]) -> Courier:
        self.relays.serve({name: self.tap.between(name, partial(self._alone, agent)) for name, agent in agents.items()})
        return self.relays.courier

    def _alone(self, agent: Handler, frame: bytes) -> bytes:
        """Let one agent compute at a time, as in processes of their own: filters of warnings are a process's."""
        with self._lock:
            return agent(frame)

    @property
    def run(self) -> Run:
        """What the coordinator knows."""
        run = self.federation.records.newest()
        assert run is not None
        return run

    @property
    def done(self) -> int:
        """How many sums that is."""
        return self.run.training.done

    def kill(self, victim: str, frame: str) -> str:
        """Kill a process when `MORTAL`'s agent has a frame, wait until all are back, and return what the pause was."""
        fell: list[str] = []

        def watch(name: str, kind: str) -> None:
            if (name, kind) == (MORTAL, frame) and not fell:
                fell.append(name)
                self.relays.kill(victim)
                if victim != COORDINATOR:
                    local.start(self.relays.kits)  # at once, as systemd does

        self.tap.watch, before, code, began = watch, self.done, "", time.monotonic()
        try:
            while not fell:
                self.federation.coordinator.run_once()
        except Unavailable as error:
            code = error.code
        assert fell, f"{frame} did not come, but {code}"
        assert time.monotonic() - began < STAGE_S, "a lost answer was waited for until the time was up"
        assert self.done == before
        local.start(self.relays.kits)
        self.relays.wait_for(frozenset(HOSPITALS))
        return code

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


def test_a_relay_and_the_server_that_are_killed_at_every_frame_cost_the_round_and_nothing_else(carried: Carried):
    made, victims = carried.federation, (MORTAL, COORDINATOR)
    deaths = [(victim, stage) for stage in STAGES for victim in victims]
    made.coordinator.open(plan(made, rounds=len(deaths), spare=len(deaths)))
    # The others accept the plan beside the relay's death, and are not asked again.
    assert [carried.kill(victim, "PLAN") for victim in victims] == ["", "courier"]
    assert carried.run.accepted == set(HOSPITALS) - {MORTAL}
    held = reserved(made, MORTAL)
    assert {state for state, _ in held.values()} == {State.RESERVED}
    made.coordinator.run_once()
    assert carried.run.accepted == set(HOSPITALS)
    assert reserved(made, MORTAL) == held  # a third plan, and one reservation of each kind
    for victim, stage in deaths:
        assert carried.kill(victim, stage) in {"courier", "below-threshold"}
        carried.sum()
    while not carried.run.over:
        made.coordinator.run_once()
    assert [carried.kill(victim, "END") for victim in victims] == ["untold", "courier"]
    assert carried.run.untold == {MORTAL}
    settled = reserved(made, MORTAL)
    assert finish(made) == "finished"
    assert not carried.run.untold
    assert reserved(made, MORTAL) == settled  # told three times
    given = carried.tap.given(made.coordinator._identity.public_key().public_bytes_raw())
    for name in HOSPITALS:
        found = reserved(made, name)
        assert found == {kind: (State.SPENT, given[name, kind]) for kind in found}
        # Every sum is of all three. Of the ten lost rounds, four ended before a masked input could leave, and four when
        # all had left. In the two between, the frame that asks `MORTAL` for its input came together with the death, and
        # its agent gave it for nobody; whether the others got their frame, too, is a matter of time.
        more = {6} if name == MORTAL else {4, 5, 6}
        assert sum(steps for _, steps in found.values()) - carried.done in more
    carried.tap.check_masks()
