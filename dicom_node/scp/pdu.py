"""Protocol Data Units off a socket (PS3.8 Section 9.3): bounded in length, in waiting and in memory."""

from __future__ import annotations

import socket
import struct
import time

from ..core.errors import ProtocolError

ASSOCIATE_RQ, P_DATA, RELEASE_RQ, ABORT = 0x01, 0x04, 0x05, 0x07
NOT_SPECIFIED, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 2, 6
_HEADER = 6


class Closed(Exception):
    """The peer closed or aborted the connection."""


class Violation(ProtocolError):
    """The peer broke PS3.8; the reason goes into the A-ABORT PDU (PS3.8 Table 9-26)."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


class PduReader:
    """Reads PDUs through one buffer, several at a time when the peer is fast.

    Parameters
    ----------
    connection : socket.socket
        Its time-out bounds every wait.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = memoryview(bytearray(8192))
        self._start = self._end = 0

    def enlarge(self, size: int) -> None:
        """Give the buffer room for `size` bytes at least."""
        if size > len(self._buffer):
            larger = memoryview(bytearray(size))
            larger[: self._end - self._start] = self._buffer[self._start : self._end]
            self._buffer, self._start, self._end = larger, 0, self._end - self._start

    def next(self, limit: int, timeout_s: float) -> tuple[int, memoryview]:
        """Read a PDU.

        Parameters
        ----------
        limit : int
            Longest body to take, bytes; nothing of a longer one is read.
        timeout_s : float
            Time from the first byte to the last, seconds.

        Returns
        -------
        tuple of int and memoryview
            Type and body; the body is valid until the next call.

        Raises
        ------
        Closed
            The peer closed the connection.
        Violation
            The PDU is longer than `limit`.
        TimeoutError
            It did not come in time.
        """
        self._await(1, None)
        deadline = time.monotonic() + timeout_s
        self._await(_HEADER, deadline)
        kind, length = struct.unpack_from(">BxI", self._buffer, self._start)
        if length > limit:
            raise Violation("a PDU is announced longer than is allowed here", INVALID_PARAMETER)
        self._await(_HEADER + length, deadline)
        body = self._buffer[self._start + _HEADER : self._start + _HEADER + length]
        self._start += _HEADER + length
        return int(kind), body

    def _await(self, count: int, deadline: float | None) -> None:
        """Have `count` bytes in the buffer."""
        while self._end - self._start < count:
            if self._start == self._end:
                self._start = self._end = 0
            elif self._start + count > len(self._buffer):
                rest = self._end - self._start
                self._buffer[:rest] = self._buffer[self._start : self._end]
                self._start, self._end = 0, rest
            if count > len(self._buffer):
                self.enlarge(count)
            received = self._socket.recv_into(self._buffer[self._end :])
            if received == 0:
                raise Closed
            self._end += received
            if deadline is not None and self._end - self._start < count and time.monotonic() > deadline:
                raise TimeoutError
