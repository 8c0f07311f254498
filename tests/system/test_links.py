"""The relay of the benches: nothing arrives before its link allows it, everything arrives, and ends are passed on."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.bench.links import LINKS, QUEUE, Direction, Link, Relay, measured

SLOW = Link(round_trip_s=0.2, bytes_per_s=1000.0)


def test_a_direction_sends_at_its_rate_and_delays_by_half_a_round_trip():
    direction = Direction(SLOW)
    assert direction.arrival(500, now=10.0) == pytest.approx(10.6)
    assert direction.arrival(100, now=10.1) == pytest.approx(10.7)  # waits for what was sent before
    assert direction.arrival(100, now=20.0) == pytest.approx(20.2)  # the link was idle since
    assert direction.arrival(0, now=30.0) == pytest.approx(30.1)


@dataclass
class Rig:
    """A relay with a clock of our own, between a caller and who is called."""

    link: Link
    now: float = 0.0
    closing: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.relay = Relay(listener.getsockname()[1], self.link, clock=lambda: self.now)
        self.caller = socket.create_connection(("127.0.0.1", self.relay.port))
        self.relay.step(1.0)
        self.called, _ = listener.accept()
        listener.close()
        for one in (self.caller, self.called):
            one.setblocking(False)
        self.closing += [self.caller.close, self.called.close, self.relay.close]

    def at(self, now: float, receiver: socket.socket) -> bytes | None:
        """What has arrived by then; None where nothing has."""
        self.now = now
        for _ in range(20):
            self.relay.step(0.0)
        try:
            return receiver.recv(1 << 20)
        except BlockingIOError:
            return None


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(SLOW)
    yield made
    for close in made.closing:
        close()


def test_no_byte_arrives_before_its_time(rig):
    rig.caller.sendall(b"x" * 500)
    assert rig.at(0.0, rig.called) is None
    assert rig.at(0.59, rig.called) is None
    assert rig.at(0.61, rig.called) == b"x" * 500
    rig.called.sendall(b"y")  # the other way is free
    assert rig.at(0.61, rig.caller) is None
    assert rig.at(0.72, rig.caller) == b"y"


def test_an_end_arrives_after_what_was_sent_before_it_and_the_other_way_stays_open(rig):
    rig.caller.sendall(b"last")
    rig.caller.shutdown(socket.SHUT_WR)
    assert rig.at(0.0, rig.called) is None
    assert rig.at(0.2, rig.called) == b"last"
    assert rig.at(0.2, rig.called) == b""
    rig.called.sendall(b"answer")
    rig.at(0.2, rig.caller)
    assert rig.at(0.4, rig.caller) == b"answer"
    rig.called.close()
    rig.at(0.5, rig.caller)
    assert rig.at(0.7, rig.caller) == b""
    assert rig.relay._pairs == []


def test_a_sender_is_held_back_once_the_queue_is_full(rig):
    rig.caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    sent = 0
    for _ in range(2000):
        try:
            sent += rig.caller.send(bytes(1 << 16))
        except BlockingIOError:
            rig.relay.step(0.0)
    held = rig.relay._pairs[0][0].waiting
    assert QUEUE <= held < QUEUE + (1 << 15)
    assert sent < 8 * QUEUE  # the rest lies in the kernel's buffers


def test_every_byte_passes_in_both_directions_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay(listener.getsockname()[1], Link(1e-4, 1e9))
        stop = threading.Event()
        thread = threading.Thread(target=lambda: [relay.step(0.05) for _ in iter(stop.is_set, True)])
        thread.start()
        caller = socket.create_connection(("127.0.0.1", relay.port))
        called, _ = listener.accept()
        data = os.urandom(3_000_000)

        def echo() -> None:
            while piece := called.recv(1 << 16):
                called.sendall(piece)
            called.shutdown(socket.SHUT_WR)

        def speak() -> None:
            caller.sendall(data)
            caller.shutdown(socket.SHUT_WR)

        speakers = [threading.Thread(target=one) for one in (echo, speak)]
        for one in speakers:
            one.start()
        heard = b"".join(iter(lambda: caller.recv(1 << 16), b""))
        for one in speakers:
            one.join()
        stop.set()
        thread.join()
        relay.close()
        caller.close()
        called.close()
    assert heard == data


def test_a_caller_is_let_go_where_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    relay = Relay(port, SLOW)
    with socket.create_connection(("127.0.0.1", relay.port)) as caller:
        relay.step(1.0)
        assert caller.recv(1) == b""
    relay.close()


@pytest.mark.parametrize("link", LINKS)
def test_a_relay_as_a_process_measures_about_as_its_link_says(link, tmp_path):
    found, wanted = measured(link, tmp_path), LINKS[link]
    assert 1.0 <= found["measured_round_trip_ms"] / (1e3 * wanted.round_trip_s) < 8.0  # a busy machine only adds
    assert 0.1 < found["measured_mbit_per_s"] / (8e-6 * wanted.bytes_per_s) <= 1.2
