"""Federations of tiny hospitals in one process, whose frames can be lost and whose programs can be killed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from dicom_node.core import failpoint
from dicom_node.core.database import Database
from dicom_node.core.errors import Unavailable
from dicom_node.core.training_settings import PrivacySettings
from fl_agent.coordinator.patience import Timing
from fl_agent.courier.courier import Handler
from fl_agent.learning import envelope as wire
from fl_agent.learning.plan import Plan
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.site import Examples
from fl_agent.ledger.entries import State
from fl_agent.ledger.ledger import Ledger
from fl_agent.secagg.frames import open_frame
from fl_agent.simulate.federation import Federation
from tests.fl_agent.learning.hospitals import CHANNELS, examples
from tests.fl_agent.trunks import setup

PRIVACY = PrivacySettings(epsilon=8.0, delta=1e-3)


class Killed(BaseException):
    """What stands for SIGKILL: nothing catches it, so whatever is not on the disk is gone."""


#: What the coordinator sends to a site in a round, in order, as `kind` names it.
STAGES = ("ROUND", "KeyList", "CiphertextList", "SurvivorList", "SignatureList")


def kind(frame: bytes) -> str:
    """Name what the coordinator sends: an envelope's kind or a message."""
    return wire.Kind(frame[1]).name if wire.is_envelope(frame) else open_frame(frame).kind.__name__


#: Whether a frame to a site is lost; it may also raise, or change the world.
Loss = Callable[[str, bytes], bool]


class FlakyCourier:
    """Loses frames and answers as it is told, and takes a killed agent for a silent one."""

    def __init__(self, sites: Mapping[str, Handler], lost: Loss, waited: list[tuple[str, float]]) -> None:
        self.sites, self.lost, self.waited = sites, lost, waited
        self.away: set[str] = set()

    def connected(self) -> frozenset[str]:
        return frozenset(self.sites) - self.away

    def exchange(self, frames: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        for name, frame in frames.items():
            if self.lost(name, frame):
                self.waited.append((name, timeout_s))
                continue
            try:
                yield name, self.sites[name](frame)
            except Killed:
                self.waited.append((name, timeout_s))

    def close(self) -> None:
        pass


def sites(count: int = 3) -> dict[str, Examples]:
    return {f"site-{number}": examples(20 + 15 * number, number) for number in range(count)}


@cache
def template() -> bytes:
    """A site's empty database: to copy one takes a hundredth of the time that migrations take."""
    with TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/site.sqlite3")
        database.migrate()
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
        return (Path(folder) / "site.sqlite3").read_bytes()


def federation(
    folder: Path,
    count: int = 3,
    lost: Loss = lambda name, frame: False,
    privacy: PrivacySettings = PRIVACY,
    **options: Any,
) -> Federation:
    waited: list[tuple[str, float]] = []
    for name in sites(count):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name / "site.sqlite3").exists():  # else it is a federation that goes on
            (folder / name / "site.sqlite3").write_bytes(template())
    made = Federation(
        folder, sites(count), privacy, timing=Timing(stage=30, contribution=600, probe=2, joining=5),
        courier=lambda handlers: FlakyCourier(handlers, lost, waited), **options,
    )  # fmt: skip
    made.waited = waited
    return made


def plan(made: Federation, mode: str = "distributed", rounds: int = 3, spare: int = 3, **descent: Any) -> Plan:
    budget = Budget(3.0, 1e-3, mode)
    features = Features(setup("head"), ("plain", "mirrored"), CHANNELS)
    chosen = default_descent(rounds, spare, **{"learning_rate": 2.0, "clip": 0.3, **descent})
    return propose("1.0", made.members, features, budget, chosen)


def finish(made: Federation, attempts: int = 40) -> str:
    """Run to the end, trying again as the service's loop does; return how the run ended."""
    for _ in range(attempts):
        try:
            if not made.coordinator.run_once():
                current = made.records.newest()
                assert current is not None
                if current.over:
                    return current.over
        except Unavailable:
            continue
    raise AssertionError("the run has not come to its end")


def kill_at(monkeypatch: pytest.MonkeyPatch, place: str, hits: Collection[int] = (0,)) -> list[int]:
    """Kill whoever comes to this place for the n-th time, from 0; return a list that grows with each kill."""
    came = itertools.count()
    killed: list[int] = []

    def reach(found: str) -> None:
        if found == place and (hit := next(came)) in hits:
            killed.append(hit)
            raise Killed

    monkeypatch.setattr(failpoint, "reach", reach)
    return killed


def reserved(made: Federation, name: str) -> dict[str, tuple[State, int]]:
    """State and counted steps of a site's reservations, by what they pay for."""
    return counted(made.hospitals[name].ledger)


def counted(ledger: Ledger) -> dict[str, tuple[State, int]]:
    """State and counted steps of a ledger's reservations, by what they pay for."""
    found = [one for one in ledger.entries() if one.counts]
    assert len({one.terms.name for one in found}) == len(found), "budget was taken twice for one thing"
    return {one.terms.name: (one.state, one.terms.steps) for one in found}
