"""Frames between a service and its CrypTen process over a socket pair: kind, length, payload; every wait has an end."""

from __future__ import annotations

import socket
import struct
import time
from enum import IntEnum

from dicom_node.core.errors import Unavailable

from ..protocol.messages import Vector

HEADER = struct.Struct(">BQ")


class Kind(IntEnum):
    """What a frame holds."""

    HELLO = 1  # child: the self-test is passed
    FAILED = 2  # child: it is not; the child ends
    MODEL = 3  # service: rank and program, then the weights and biases, where they are ours
    SEEDS = 4  # service: seeds of the tuples and of the sharings of zero
    CORRECTIONS = 5  # service: of the next tuple, at party 1
    RUN = 6  # service: the input at the hospital, nothing at party 1
    MINE = 7  # child: its share of an opening
    PEERS = 8  # service: the peer's share
    OUTPUT = 9  # child: its share of what the hospital learns


class Pipe:
    """One end.

    Parameters
    ----------
    end : socket.socket
        Owned by the pipe.
    timeout_s : float or None
        For any one frame; None waits for ever, which only the child does, as the service's end closes with it.
    """

    def __init__(self, end: socket.socket, timeout_s: float | None) -> None:
        self._end = end
        self._timeout_s = timeout_s

    def send(self, kind: Kind, payload: Vector = b"") -> None:
        """Send one frame; Unavailable (``crypten-process``) when the other end is gone or does not read."""
        try:
            self._end.settimeout(self._timeout_s)
            self._end.sendall(HEADER.pack(kind, len(payload)))
            self._end.sendall(payload)
        except OSError as error:
            raise _gone(error) from error

    def receive(self, timeout_s: float | None = None) -> tuple[Kind, bytes]:
        """Wait for one frame.

        Raises
        ------
        Unavailable
            The other end is gone, or was silent for too long (``crypten-process``).
        """
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        until = None if wait_s is None else time.monotonic() + wait_s
        kind, size = HEADER.unpack(self._read(HEADER.size, until))
        return Kind(kind), self._read(size, until)

    def _read(self, size: int, until: float | None) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        try:
            while view:
                self._end.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
                count = self._end.recv_into(view)
                if not count:
                    raise Unavailable("the CrypTen process has ended", code="crypten-process")
                view = view[count:]
        except OSError as error:
            raise _gone(error) from error
        return bytes(data)

    def close(self) -> None:
        """Close this end."""
        self._end.close()


def _gone(error: OSError) -> Unavailable:
    return Unavailable(f"the CrypTen process does not answer: {type(error).__name__}", code="crypten-process")
