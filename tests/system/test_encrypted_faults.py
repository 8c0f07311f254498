"""Every fault of party 1 and dealer, for a head and for a network: named, burned, tried anew, and the same report."""

from __future__ import annotations

import datetime
import io
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from dicom_node import phantom
from dicom_node.assembler import Assembler
from dicom_node.core.database import Database, audit_event, job
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from secure_infer.card import ModelCard
from secure_infer.dealt import DealtEngine
from secure_infer.network import Trunk
from secure_infer.protocol.messages import Deal, Masked, Open, Output, Ready
from secure_infer.worker import Worker
from tests.secure_infer.small_model import publish
from tests.secure_infer.small_network import every_kind
from tests.system.relay import LENGTH, Relay, honest
from tests.system.roles import Roles

NOW = 1_750_000_000.0
TIMEOUT_S = 1.0
#: A fault is named within its time-outs; without any it would last for ever.
PATIENCE_S = 60.0
KINDS = ("head", "network")


class SmallTrunk:
    """A public part whose output is a small network's input: the picture in six by six fields, and its negative."""

    def features(self, image: np.ndarray) -> np.ndarray:
        fields = np.asarray(image, np.float64)[:222, :222].reshape(6, 37, 6, 37).mean((1, 3))
        fields = (fields - fields.min()) / np.ptp(fields)
        return np.stack([fields, 1 - fields])


@dataclass
class World:
    """The services of this file, and a relay before each of them."""

    roles: Roles
    cards: dict[str, ModelCard]
    trunks: dict[str, Any]
    relays: dict[str, Relay]

    def start_relays(self) -> None:
        self.relays = {role: Relay(self.roles, role) for role in ("party", "dealer")}

    def spent_by_party(self) -> set[bytes]:
        return spent(self.roles.folder / "party")


def spent(folder: Path) -> set[bytes]:
    """The bundles that one side has marked in its ledger."""
    connection = sqlite3.connect(folder / "spent.sqlite3")
    found = {row[0] for row in connection.execute("SELECT bundle FROM spent")}
    connection.close()
    return found


class Site:
    """A hospital with one complete study, whose worker classifies it when told to."""

    def __init__(self, folder: Path, world: World, kind: str) -> None:
        self.folder, self.now = folder, NOW
        self.inference = world.roles.inference(
            timeout_s=TIMEOUT_S, **{role: relay.endpoint for role, relay in world.relays.items()}
        )
        settings = Settings.model_validate(
            {"site": {"name": "Hospital", "state_dir": folder}, "inference": self.inference.model_dump(mode="json")}
        )
        self.database = Database(settings.database_url)
        self.database.migrate()
        store = Store(settings, self.database, clock=lambda: self.now)
        study = phantom.Study.numbered(1, key="faults")
        content = io.BytesIO()
        picture = phantom.draw(1, "consolidation", (256, 256))
        phantom.dataset(picture, study=study).save_as(content, enforce_file_format=True)
        store.add_file(content.getvalue(), "test")
        self.now += settings.assembler.quiet_s
        Assembler(settings, self.database, store, open_studies=set).run_once(self.now)
        self.engine = DealtEngine(world.cards[kind], self.inference, folder / "bundles")
        self._worker = Worker(
            settings, self.database, store, world.cards[kind], world.trunks[kind], self.engine,
            owner="test", clock=lambda: self.now,
        )  # fmt: skip

    def work(self) -> sa.Row[Any]:
        """Let the worker take the job, which is due; what became of it."""
        assert self._worker.run_once()
        with self.database.read() as connection:
            found = connection.execute(sa.select(job).where(job.c.kind == "classify")).one()
        self.now += 1000.0  # longer than any pause before the next try
        return found

    def audited(self, what: str) -> dict[str, Any]:
        """The details of one row of the hospital's trail."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(audit_event).where(audit_event.c.event_type == what))
            return rows.one().detail

    @property
    def spent(self) -> set[bytes]:
        return spent(self.folder / "bundles")

    def close(self) -> None:
        self.engine.close()
        self.database.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    roles = Roles(tmp_path_factory.mktemp("faults"), timeout_s=2 * TIMEOUT_S)
    cards = {"head": roles.cards["map"], "network": publish(roles.models, every_kind(), version="network")}
    found = World(roles, cards, {"head": Trunk(), "network": SmallTrunk()}, {})
    try:
        roles.start()
        yield found
    finally:
        roles.stop()


@pytest.fixture
def made(world: World) -> Iterator[World]:
    world.start_relays()
    yield world
    for relay in world.relays.values():
        relay.close()


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The hashes of the reports that the study gets when nothing happens."""
    world.start_relays()
    found = {}
    for kind in KINDS:
        site = Site(tmp_path_factory.mktemp(kind), world, kind)
        done = site.work()
        assert (done.state, done.attempts) == ("done", 1)
        found[kind] = [one["sha256"] for one in done.result["reports"]]
        site.close()
    for relay in world.relays.values():
        relay.close()
    return found


# ---- what is done to them; each returns what mends it


Mend = Callable[[], None]
Harm = Callable[[World], Mend]


def nothing() -> None:
    return


def when(relay: Relay, kind: type, act: Callable[[], None]) -> None:
    """Do something once, just before a message of this kind reaches the service."""
    acted: list[bool] = []

    def spoil(way: str, frame: bytes) -> list[bytes]:
        if way == "asks" and frame[0] == kind.KIND and not acted:
            acted.append(True)
            act()
        return [frame]

    relay.spoil = spoil


def answer_with(relay: Relay, after: type, change: Callable[[bytes], list[bytes]]) -> Mend:
    """Change the service's first answer after a message of this kind."""
    asked: list[bool] = []

    def spoil(way: str, frame: bytes) -> list[bytes]:
        if way == "asks":
            asked.extend([True] * (frame[0] == after.KIND))
            return [frame]
        if asked:
            asked.clear()
            return change(frame)
        return [frame]

    relay.spoil = spoil
    return lambda: setattr(relay, "spoil", honest)


def killed(role: str, at: type) -> Harm:
    def harm(world: World) -> Mend:
        service, start = getattr(world.roles, role), getattr(world.roles, f"start_{role}")
        when(world.relays[role], at, service.kill)
        return start

    return harm


def pause(pid: int) -> None:
    """Stop a process, and wait until it stands: the signal alone is not yet the deed."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


def paused(role: str, at: type) -> Harm:
    def harm(world: World) -> Mend:
        pid = getattr(world.roles, role).pid
        when(world.relays[role], at, lambda: pause(pid))
        return lambda: os.kill(pid, signal.SIGCONT)

    return harm


def slow(role: str) -> Harm:
    def harm(world: World) -> Mend:
        world.relays[role].drip_s = 0.2
        return lambda: setattr(world.relays[role], "drip_s", 0.0)

    return harm


def tampered(role: str, after: type, change: Callable[[bytes], list[bytes]]) -> Harm:
    return lambda world: answer_with(world.relays[role], after, change)


def shows(role: str, name: str, **lifetime: datetime.timedelta) -> Harm:
    def harm(world: World) -> Mend:
        relay, roles = world.relays[role], world.roles
        relay.show(roles.authority.issue(name, **lifetime))
        return lambda: relay.show(roles.tls[role])

    return harm


def dealt_again(world: World) -> Mend:
    """The dealer's answer to an earlier request, in place of the one to this."""
    relay = world.relays["dealer"]
    earlier: list[bytes] = []

    def spoil(way: str, frame: bytes) -> list[bytes]:
        if way == "asks":
            return [frame]
        earlier.append(frame)
        return [earlier[0]]

    relay.spoil = spoil
    return lambda: setattr(relay, "spoil", honest)


def opened_before(world: World) -> Mend:
    """Somebody with the hospital's certificate opens the bundle just before the hospital does."""
    relay = world.relays["party"]

    def spoil(way: str, frame: bytes) -> list[bytes]:
        if way == "asks" and frame[0] == Open.KIND:
            with relay.dial() as other:
                other.sendall(LENGTH.pack(len(frame)) + frame)
                other.recv(1)
        return [frame]

    relay.spoil = spoil
    return lambda: setattr(relay, "spoil", honest)


def cut(frame: bytes) -> list[bytes]:
    return [frame[:-8]]


def twice(frame: bytes) -> list[bytes]:
    return [frame, frame]


def as_kind(kind: type) -> Callable[[bytes], list[bytes]]:
    return lambda frame: [bytes([kind.KIND]) + frame[1:]]


@dataclass(frozen=True)
class Fault:
    """A fault, the names under which it may be told, and whether party 1 had heard of the bundle."""

    harm: Harm
    codes: frozenset[str]
    opened: bool = False
    dealt: bool = True


def fault(harm: Harm, codes: str, **about: bool) -> Fault:
    return Fault(harm, frozenset(codes.split()), **about)


GONE = "connection-closed unreachable peer-timeout"
LEGAL = "out-of-order wrong-size malformed-message manifest-signature frame-too-long"
OLD = datetime.timedelta(minutes=-1)
FAULTS = {
    "party 1 killed in a query": fault(killed("party", Masked), GONE, opened=True),
    "party 1 killed when a bundle is opened": fault(killed("party", Open), GONE),
    "dealer killed": fault(killed("dealer", Deal), GONE, dealt=False),
    "party 1 paused in a query": fault(paused("party", Masked), "peer-timeout", opened=True),
    "dealer paused": fault(paused("dealer", Deal), "peer-timeout", dealt=False),
    "party 1 slow": fault(slow("party"), "peer-timeout", opened=True),
    "dealer slow": fault(slow("dealer"), "peer-timeout", dealt=False),
    "party 1 sends the wrong size when asked": fault(tampered("party", Masked, cut), LEGAL, opened=True),
    "party 1 sends the wrong size when a bundle is opened": fault(tampered("party", Open, cut), LEGAL, opened=True),
    "dealer sends the wrong size": fault(tampered("dealer", Deal, cut), LEGAL, dealt=False),
    "party 1 sends a message twice": fault(tampered("party", Open, twice), LEGAL, opened=True),
    "party 1 answers before its turn": fault(tampered("party", Open, as_kind(Output)), LEGAL, opened=True),
    "dealer sends a message of party 1": fault(tampered("dealer", Deal, as_kind(Ready)), LEGAL, dealt=False),
    "party 1 shows another certificate": fault(shows("party", "stranger"), "wrong-certificate"),
    "dealer shows another certificate": fault(shows("dealer", "stranger"), "wrong-certificate", dealt=False),
    "party 1 shows an expired certificate": fault(shows("party", "old", lifetime=OLD), "certificate-out-of-date"),
    "dealer shows an expired certificate": fault(
        shows("dealer", "old", lifetime=OLD), "certificate-out-of-date", dealt=False
    ),
    "a bundle opened by somebody else before": fault(opened_before, "bundle-reused", opened=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_burns_its_bundle_and_leaves_the_report_as_it_would_have_been(
    made, undisturbed, tmp_path, kind, name
):
    found = FAULTS[name]
    site = Site(tmp_path, made, kind)
    before = made.spent_by_party()
    mend = found.harm(made)
    started = time.monotonic()
    try:
        stopped = site.work()
        assert time.monotonic() - started < PATIENCE_S
    finally:
        for relay in made.relays.values():
            relay.spoil = honest
        mend()
    assert (stopped.state, stopped.attempts) == ("waiting", 1)
    assert stopped.code in found.codes
    burned = site.spent
    assert len(burned) == found.dealt
    assert made.spent_by_party() - before == (burned if found.opened else set())
    done = site.work()
    assert (done.state, done.attempts) == ("done", 2)
    fresh = site.spent - burned
    assert len(fresh) == 1
    assert made.spent_by_party() - before == fresh | (burned if found.opened else set())
    assert [one["sha256"] for one in done.result["reports"]] == undisturbed[kind]
    assert done.result["bundles"] == site.audited("study-classified")["bundles"] == [one.hex() for one in fresh]
    site.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_that_the_dealer_hands_out_again_is_not_computed_on(made, undisturbed, tmp_path, kind):
    sites = [Site(tmp_path / str(number), made, kind) for number in range(2)]
    mend = dealt_again(made)
    first, second = sites
    assert first.work().state == "done"
    before = made.spent_by_party()
    second.engine._ledger.close()  # both workers of one hospital share their marks
    second.engine._ledger = first.engine._ledger
    stopped = second.work()
    assert (stopped.state, stopped.code in {"bundle-reused", "wrong-bundle", "wrong-session"}) == ("waiting", True)
    assert made.spent_by_party() == before
    mend()
    done = second.work()
    assert [one["sha256"] for one in done.result["reports"]] == undisturbed[kind]
    for site in sites:
        site.close()
