"""A slow network between two processes: a relay with a delay line and a rate limit for each direction (after netem(8)).

As a program, ``python -m tests.bench.links --to PORT --link wan`` relays a free port to PORT, both on loopback, and
announces ``ready`` with that port in its log.

Bytes leave the sending side one after the other at the link's rate, and arrive half a round trip later. As in a
network, what was sent first delays what is sent next, also on other connections; a sender is held back once its queue
is full. There is no loss, no jitter and no slow start. The kernel's own transport and the relay's work come on top, so
figures measured through a relay are upper bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.core import logs, loops
from dicom_node.launch import Service

log = logs.get(__name__)
#: One TLS record: a longer piece would wait for its own last byte.
PIECE = 1 << 14
#: Bytes under way in one direction of one connection before its sender is held back: a large send buffer's worth.
QUEUE = 1 << 22
#: Ends a message of `measured`.
END = b"\1"


@dataclass(frozen=True)
class Link:
    """What a network costs.

    Attributes
    ----------
    round_trip_s : float
        Time for a byte there and a byte back, seconds.
    bytes_per_s : float
        Rate in each direction.
    """

    round_trip_s: float
    bytes_per_s: float

    def describe(self) -> dict[str, float]:
        """Say it in a network engineer's units."""
        return {"round_trip_ms": 1e3 * self.round_trip_s, "mbit_per_s": 8e-6 * self.bytes_per_s}


LINKS = {
    "lan": Link(round_trip_s=0.25e-3, bytes_per_s=1e9 / 8),
    "wan": Link(round_trip_s=10e-3, bytes_per_s=1e8 / 8),
}


@dataclass
class Direction:
    """One direction of a link, shared by all its connections: when a piece that was sent now has arrived.

    Parameters
    ----------
    link : Link
    """

    link: Link
    _free_at: float = 0.0

    def arrival(self, size: int, now: float) -> float:
        """Send `size` bytes at time `now`, seconds; return when the last of them is on the other side."""
        self._free_at = max(self._free_at, now) + size / self.link.bytes_per_s
        return self._free_at + self.link.round_trip_s / 2


@dataclass
class Pipe:
    """One direction of one connection; an empty piece is the end of the stream."""

    source: socket.socket
    target: socket.socket
    direction: Direction
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting: int = 0
    ended: bool = False

    def read(self, now: float) -> None:
        """Take a piece from the sender."""
        piece = self.source.recv(PIECE)
        self.ended = not piece
        self.queue.append((self.direction.arrival(len(piece), now), piece))
        self.waiting += len(piece)

    def write(self, now: float) -> None:
        """Hand over what has arrived, as far as the receiver takes it."""
        while self.queue and self.queue[0][0] <= now:
            due, piece = self.queue.popleft()
            if not piece:
                self.target.shutdown(socket.SHUT_WR)
                continue
            count = self.target.send(piece)
            self.waiting -= count
            if count < len(piece):
                self.queue.appendleft((due, piece[count:]))
                return

    @property
    def wants(self) -> bool:
        """Whether more may be read."""
        return not self.ended and self.waiting < QUEUE

    @property
    def done(self) -> bool:
        """Whether the stream has ended on both sides."""
        return self.ended and not self.queue


class Relay:
    """Accepts connections on a free port and carries them over the link to another port, both on loopback.

    One thread serves all: `select.select` waits with the clock's own precision, `epoll` in whole milliseconds.
    """

    def __init__(self, to: int, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self._to = to
        self._clock = clock
        self._there, self._back = Direction(link), Direction(link)
        self._pairs: list[tuple[Pipe, Pipe]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def step(self, longest_s: float) -> None:
        """Move what can be moved, waiting for it no longer than `longest_s`."""
        pipes = [pipe for pair in self._pairs for pipe in pair]
        now = self._clock()
        due = [pipe for pipe in pipes if pipe.queue and pipe.queue[0][0] <= now]
        later = [pipe.queue[0][0] - now for pipe in pipes if pipe.queue and pipe not in due]
        readers = [self._listener, *(pipe.source for pipe in pipes if pipe.wants)]
        readable, writable, _ = select.select(readers, [pipe.target for pipe in due], [], min([longest_s, *later]))
        if self._listener in readable:
            self._accept()
        now = self._clock()
        for pair in list(self._pairs):
            try:
                for pipe in pair:
                    if pipe.source in readable and pipe.wants:
                        pipe.read(now)
                    if pipe.queue and (pipe.target in writable or pipe not in due):
                        with contextlib.suppress(BlockingIOError):
                            pipe.write(now)
                broken = all(pipe.done for pipe in pair)
            except OSError:  # a side has gone; so does the other
                broken = True
            if broken:
                self._drop(pair)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:  # nobody listens there
            near.close()
            return
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append((Pipe(near, far, self._there), Pipe(far, near, self._back)))

    def _drop(self, pair: tuple[Pipe, Pipe]) -> None:
        self._pairs.remove(pair)
        for pipe in pair:
            pipe.source.close()

    def close(self) -> None:
        """End all connections."""
        self._listener.close()
        for pair in list(self._pairs):
            self._drop(pair)


@contextlib.contextmanager
def relayed(to: int, link: str, folder: Path, name: str) -> Iterator[int]:
    """Run a relay to the port `to` as a process of its own; give its port."""
    command = [sys.executable, "-m", "tests.bench.links", "--to", str(to), "--link", link]
    service = Service(name, command, folder)
    service.start()
    try:
        yield service.wait_ready()["port"]
    finally:
        service.kill()


def measured(link: str, folder: Path, size: int = 1 << 24, round_trips: int = 50) -> dict[str, float]:
    """Measure a relay itself: the median of many round trips of a byte, and the rate of `size` bytes in one direction.

    Parameters
    ----------
    folder : Path
        Takes the relay's log.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        threading.Thread(target=_acknowledge, args=(listener,), daemon=True).start()
        port = stack.enter_context(relayed(listener.getsockname()[1], link, folder, f"measured-{link}"))
        caller = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def seconds(data: bytes) -> float:
            started = time.perf_counter()
            caller.sendall(data)
            caller.recv(1)
            return time.perf_counter() - started

        trips = sorted(seconds(END) for _ in range(round_trips))
        data = bytes(size) + END
        rate = size / (seconds(data) - trips[0])
    return {"measured_round_trip_ms": 1e3 * trips[round_trips // 2], "measured_mbit_per_s": 8e-6 * rate}


def _acknowledge(listener: socket.socket) -> None:
    """Answer one caller with a byte whenever a message has come to its end."""
    called, _ = listener.accept()
    with called:
        called.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := called.recv(1 << 16):
            if data.endswith(END):
                called.sendall(END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--link", choices=sorted(LINKS), required=True)
    arguments = parser.parse_args()
    logs.configure("relay")
    Path("/proc/self/timerslack_ns").write_text("1")  # the default of 50 µs would be a fifth of the LAN's round trip
    stop = loops.stop_on_signals()
    relay = Relay(arguments.to, LINKS[arguments.link])
    log.info("ready", port=relay.port)
    while not stop.is_set():
        relay.step(1.0)
    relay.close()


if __name__ == "__main__":
    main()
