"""Processes killed at every durable step, and two that reserve at once: budget may be lost, privacy never."""

from __future__ import annotations

import subprocess

import pytest

from dicom_node.core.database import Database
from fl_agent.ledger.accountant import loss, total
from fl_agent.ledger.entries import Entry, State
from fl_agent.ledger.ledger import Ledger
from tests.fl_agent.ledger.site import LIMITS, reserve, start, training


@pytest.fixture
def url(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)


def said(process: subprocess.Popen[str], line: str | None = None) -> str:
    out, _ = process.communicate(line, timeout=120)
    return out.strip()


def only(ledger: Ledger) -> Entry | None:
    found = ledger.entries()
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("place", ["ledger-written", "ledger-committed"])
@pytest.mark.parametrize(
    ("before", "act", "state"),
    [
        ((), "reserve", State.RESERVED),
        ((), "begin", State.BEGUN),
        (("begin",), "spend", State.SPENT),
        ((), "release", State.RELEASED),
    ],
)
def test_a_killed_process_leaves_the_state_before_or_after_and_counts_what_may_have_run(
    tmp_path, before: tuple[str, ...], act: str, state: State, place: str
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'records.sqlite3'}")
    database.migrate()
    ledger = Ledger(database, LIMITS)
    token = ""
    if act != "reserve":
        token = reserve(ledger)
        for step in before:
            getattr(ledger, step)(token)
    held = only(ledger)
    process = start(str(database.engine.url), act, token or "100", failpoint=place)
    assert said(process) == ""  # whoever dies here has told nobody a token: no gradient can have begun
    assert process.returncode == -9
    entry = only(ledger)
    if place == "ledger-written":
        assert entry == held
    else:
        assert entry is not None
        assert entry.state is state
        assert entry.terms == training()
    database.close()


def test_two_processes_that_reserve_at_once_never_overspend(database: Database, url: str) -> None:
    processes = [start(url, "contend", "50") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ledger = Ledger(database, LIMITS)
    while any(process.poll() is None for process in processes):
        ledger.entries()  # whoever reads meanwhile sees a whole ledger, never one without its end
    taken = [int(said(process)) for process in processes]
    entries = ledger.entries()
    assert sum(taken) == len(entries)
    used = [loss(one.terms) for one in entries]
    assert total(used).lifelong(LIMITS.delta) <= LIMITS.epsilon
    assert total([*used, loss(training(50))]).lifelong(LIMITS.delta) > LIMITS.epsilon
