"""Frames around a run's rounds are lost, its plan's or its end's: no site is left out, or left with a reservation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dicom_node.core.errors import Unavailable
from fl_agent.coordinator.coordinator import FAREWELLS
from fl_agent.coordinator.patience import Timing
from fl_agent.ledger.entries import State
from tests.fl_agent.federations import federation, finish, kind, plan, reserved


def test_a_lost_answer_to_the_plan_is_asked_for_again_soon_and_each_time_waited_for_longer(memory: Path) -> None:
    heard: list[str] = []

    def lost(name: str, frame: bytes) -> bool:
        """Bring the frame, and lose the answer."""
        if name != "site-1" or kind(frame) != "PLAN" or len(heard) == 4:
            return False
        heard.append(name)
        made.hospitals[name].agent.handle(frame)
        return True

    with federation(memory, 4, lost) as made:
        now = [1e9]
        made.coordinator._clock = lambda: now[0]
        made.coordinator._timing = Timing(stage=30, contribution=600, probe=2, joining=300)
        agreed = plan(made, rounds=2)
        made.coordinator.open(agreed)
        assert made.coordinator.run_once()
        held = reserved(made, "site-1")
        assert {state for state, _ in held.values()} == {State.RESERVED}
        for _ in range(3):
            with pytest.raises(Unavailable) as error:  # which the service pauses for
                made.coordinator.run_once()
            assert error.value.code == "joining"
            now[0] += 80
        assert made.waited == [("site-1", seconds) for seconds in (30, 60, 120, 140)]  # no longer than `joining` is
        assert made.coordinator.run_once()
        assert reserved(made, "site-1") == held  # one reservation for five plans
        assert finish(made) == "finished"
        assert [count for _, _, count in made.records.events(agreed)] == [4, 4, 4]


def test_a_site_that_connects_while_another_is_silent_is_asked_before_the_time_is_up(memory: Path) -> None:
    with federation(memory, 4, lambda name, frame: name == "site-1" and kind(frame) == "PLAN") as made:
        made.coordinator._clock = lambda: 1e9
        made.coordinator._timing = Timing(stage=30, contribution=600, probe=2, joining=300)
        made.coordinator._courier.away = {"site-2"}
        made.coordinator.open(plan(made, rounds=2))
        assert made.coordinator.run_once()
        assert made.records.newest().accepted == {"site-0", "site-3"}
        made.coordinator._courier.away = set()
        assert made.coordinator.run_once()
        assert made.records.newest().accepted == {"site-0", "site-2", "site-3"}


def test_a_lost_end_is_told_again_and_a_site_that_stays_silent_holds_up_no_process_for_ever(memory: Path) -> None:
    ends: Counter[str] = Counter()
    deaf = {"site-1"}

    def lost(name: str, frame: bytes) -> bool:
        if kind(frame) != "END":
            return False
        ends[name] += 1
        return name in deaf or (name == "site-2" and ends[name] < 3)

    with federation(memory, 3, lost) as made:
        made.coordinator.open(plan(made, rounds=2))
        assert finish(made) == "finished"
        assert ends == {"site-0": 1, "site-1": FAREWELLS, "site-2": 3}
        assert made.records.newest().untold == {"site-1"}
        assert reserved(made, "site-2") == {"mean feature": (State.SPENT, 1), "head": (State.SPENT, 2)}
        deaf.clear()
        made.start_coordinator()
        assert finish(made) == "finished"
        assert not made.records.newest().untold
        assert reserved(made, "site-1") == reserved(made, "site-2")


def test_a_site_whose_answer_to_the_plan_never_came_is_told_the_end_and_gets_its_budget_back(memory: Path) -> None:
    def lost(name: str, frame: bytes) -> bool:
        if name != "site-3" or kind(frame) != "PLAN":
            return False
        made.hospitals[name].agent.handle(frame)
        return True

    with federation(memory, 4, lost) as made:
        now = [1e9]
        made.coordinator._clock = lambda: now[0]
        made.coordinator.open(plan(made, rounds=2))
        made.coordinator.run_once()
        assert {state for state, _ in reserved(made, "site-3").values()} == {State.RESERVED}
        now[0] += 6
        assert finish(made) == "finished"
        assert reserved(made, "site-3") == {}


def test_each_of_two_runs_of_one_process_ends_at_every_site(memory: Path) -> None:
    with federation(memory) as made:
        for version in ("1.0", "1.1"):
            made.coordinator.open(plan(made, rounds=2).model_copy(update={"version": version}))
            assert finish(made) == "finished"
            assert not made.records.newest().untold
