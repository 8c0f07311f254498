"""An agent killed at every stage: it is back in the next round, and its ledger never understates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fl_agent.learning import site
from fl_agent.ledger.entries import State
from fl_agent.secagg.rounds import RoundLedger
from tests.fl_agent.federations import federation, finish, kill_at, plan, reserved

PLACES = ["agent-reserved", "agent-accepted", "agent-entered", "agent-shared", "agent-begun", "agent-counted",
          "agent-masked", "agent-confirmed", "agent-unmasked", "agent-settled", "ledger-committed"]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "mode"),
    [*((place, "distributed") for place in PLACES), ("agent-counted", "site"), ("agent-settled", "site")],
)
def test_a_killed_agent_returns_and_its_ledger_counts_all_that_it_did(
    memory: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: str
) -> None:
    begun: Counter[tuple[str, str]] = Counter()
    entered: list[tuple[Any, ...]] = []
    compute, enter = site.contribution, RoundLedger.enter

    def counted(agreed: Any, own: Any, state: Any, *rest: Any) -> Any:
        begun[own.name, "head" if state.done else "mean feature"] += 1
        return compute(agreed, own, state, *rest)

    def noted(rounds: RoundLedger, run: bytes, number: int) -> None:
        enter(rounds, run, number)
        entered.append((id(rounds._connection), run, number))

    monkeypatch.setattr(site, "contribution", counted)
    monkeypatch.setattr(RoundLedger, "enter", noted)
    with federation(memory) as made:
        victims: list[str] = []
        handlers = made._handle

        def restarted(name: str, frame: bytes) -> bytes:
            try:
                return handlers(name, frame)
            except BaseException:
                victims.append(name)
                made.start(name)
                raise

        made._handle = restarted
        made.start_coordinator()
        made.coordinator.open(plan(made, mode, rounds=2, local_steps=2 if mode == "site" else 1))
        killed = kill_at(monkeypatch, place, (0, 1))
        assert finish(made) == "finished"
        finish(made)
        assert len(killed) == len(victims) == 2
        for name in made.hospitals:
            found = reserved(made, name)
            assert begun[name, "head"] >= 2
            for what in ("mean feature", "head"):
                state, steps = found[what]
                assert state in {State.SPENT, State.BEGUN}
                each = 2 if mode == "site" and what == "head" else 1
                assert steps >= each * begun[name, what]
        assert len(set(entered)) == len(entered)


def test_an_agent_that_dies_in_every_round_costs_its_budget_and_stops_nobody(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with federation(memory, 4) as made:
        agreed = plan(made, rounds=3)
        made.coordinator.open(agreed)
        made.coordinator.run_once()
        handlers = made._handle

        def dying(name: str, frame: bytes) -> bytes:
            if name != "site-3":
                return handlers(name, frame)
            with monkeypatch.context() as patched:
                kill_at(patched, "agent-counted", range(10))
                try:
                    return handlers(name, frame)
                except BaseException:
                    made.start(name)
                    raise

        made._handle = dying
        made.start_coordinator()
        assert finish(made) == "finished"
        assert [count for _, outcome, count in made.records.events(agreed) if outcome == "summed"] == [3] * 4
        found = reserved(made, "site-3")
        assert found["mean feature"] == (State.SPENT, 1)
        assert found["head"][0] is State.SPENT
        # It was asked once, then after rests, and each death was counted.
        assert 1 <= found["head"][1] <= 3
