"""What can happen to party 1 and dealer: each fault, what mends it, and the names under which it may be told."""

from __future__ import annotations

import datetime
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_infer.card import ModelCard
from secure_infer.protocol.messages import Deal, Fetch, Masked, Open, Output, Ready
from tests.system.relay import LENGTH, Relay, honest
from tests.system.roles import Roles


@dataclass
class World:
    """The services of this file, and a relay before each of them."""

    roles: Roles
    cards: dict[str, ModelCard]
    trunks: dict[str, Any]
    between: Relay  # from party 1 to the dealer, for the life of the party's process
    relays: dict[str, Relay]

    def start_relays(self) -> None:
        self.relays = {role: Relay(self.roles, role) for role in ("party", "dealer")} | {"between": self.between}

    def stop_relays(self) -> None:
        """End those that stand before the hospital."""
        for role in ("party", "dealer"):
            self.relays[role].close()

    def spent_by_party(self) -> set[bytes]:
        return spent(self.roles.folder / "party")


def spent(folder: Path) -> set[bytes]:
    """The bundles that one side has marked in its ledger."""
    connection = sqlite3.connect(folder / "spent.sqlite3")
    found = {row[0] for row in connection.execute("SELECT bundle FROM spent")}
    connection.close()
    return found


# Each returns what mends it.
Mend = Callable[[], None]
Harm = Callable[[World], Mend]


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


def killed(role: str, at: type, link: str = "") -> Harm:
    def harm(world: World) -> Mend:
        service, start = getattr(world.roles, role), getattr(world.roles, f"start_{role}")
        when(world.relays[link or role], at, service.kill)
        return start

    return harm


def pause(pid: int) -> None:
    """Stop a process, and wait until it stands: the signal alone is not yet the deed."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


def paused(role: str, at: type, link: str = "") -> Harm:
    def harm(world: World) -> Mend:
        pid = getattr(world.roles, role).pid
        when(world.relays[link or role], at, lambda: pause(pid))
        return lambda: os.kill(pid, signal.SIGCONT)

    return harm


def slow(role: str) -> Harm:
    def harm(world: World) -> Mend:
        world.relays[role].drip_s = 0.2
        return lambda: setattr(world.relays[role], "drip_s", 0.0)

    return harm


def tampered(role: str, after: type, change: Callable[[bytes], list[bytes]]) -> Harm:
    return lambda world: answer_with(world.relays[role], after, change)


def shows(role: str, name: str, link: str = "", **lifetime: datetime.timedelta) -> Harm:
    def harm(world: World) -> Mend:
        relay, roles = world.relays[link or role], world.roles
        relay.show(roles.authority.issue(name, **lifetime))
        relay.drop()  # or a connection that was kept would go on under the certificate it began with
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


def flipped(at: int) -> Callable[[bytes], list[bytes]]:
    return lambda frame: [frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]]


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
    "dealer killed when party 1 fetches": fault(killed("dealer", Fetch, "between"), GONE, opened=True),
    "dealer paused when party 1 fetches": fault(paused("dealer", Fetch, "between"), "peer-timeout", opened=True),
    "dealer slow to party 1": fault(slow("between"), "peer-timeout", opened=True),
    "dealer sends party 1 the wrong size": fault(tampered("between", Fetch, cut), LEGAL, opened=True),
    "dealer sends party 1 a message twice": fault(tampered("between", Fetch, twice), LEGAL, opened=True),
    "dealer sends party 1 a message of another": fault(tampered("between", Fetch, as_kind(Ready)), LEGAL, opened=True),
    "dealer sends party 1 an altered mask": fault(tampered("between", Fetch, flipped(20)), "wrong-bundle", opened=True),
    "dealer sends party 1 an altered manifest": fault(
        tampered("between", Fetch, flipped(60)), "manifest-signature", opened=True
    ),
    "dealer shows party 1 another certificate": fault(
        shows("dealer", "stranger", "between"), "wrong-certificate", opened=True
    ),
    "dealer shows party 1 an expired certificate": fault(
        shows("dealer", "old", "between", lifetime=OLD), "certificate-out-of-date", opened=True
    ),
    "a bundle opened by somebody else before": fault(opened_before, "bundle-reused", opened=True),
}
