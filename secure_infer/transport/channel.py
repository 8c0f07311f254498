"""Messages over one TLS connection: length-prefixed frames, each with a cap and a time-out."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from types import TracebackType
from typing import Self

from dicom_node.core import tls
from dicom_node.core.errors import ProtocolError, Unavailable, VeilRayError
from dicom_node.core.settings import EndpointSettings

from ..protocol.messages import Failure, Message, decode, room

LENGTH = struct.Struct(">I")
#: Frames up to this length go out with their length in one write.
ONE_RECORD = 1 << 14
#: Most that is kept before it is asked for, bytes: more than one side of the largest program's gates says at a time.
MOST_AHEAD = 1 << 25


class Channel:
    """One open connection; used by one thread at a time.

    Parameters
    ----------
    connection : ssl.SSLSocket
        After its handshake; the channel owns it.
    name : str
        What the peer is called in errors.
    timeout_s : float
        For sending a message, for receiving one once it has begun, and by default for waiting until it begins.

    Attributes
    ----------
    peer : str
        Fingerprint of the peer's certificate.
    certificate : bytes
        That certificate, DER.
    sent, received : int
        Bytes of frames so far, without the overhead of TLS and TCP.
    """

    def __init__(self, connection: ssl.SSLSocket, name: str, timeout_s: float) -> None:
        self.peer = tls.peer_fingerprint(connection)
        self.certificate = connection.getpeercert(binary_form=True) or b""
        self.name = name
        self.sent = 0
        self.received = 0
        self._connection = connection
        self._timeout_s = timeout_s
        self._ahead = bytearray()

    @classmethod
    def dial(cls, endpoint: EndpointSettings, context: ssl.SSLContext, name: str, timeout_s: float) -> Channel:
        """Connect to a service whose certificate is the agreed one; errors as `tls.connect`, which then name it."""
        try:
            connection = tls.connect(endpoint.host, endpoint.port, context, endpoint.fingerprint, timeout_s)
        except VeilRayError as error:
            raise type(error)(f"{name}: {error}", code=error.code) from error
        return cls(connection, name, timeout_s)

    @property
    def quiet(self) -> bool:
        """Whether the peer has said nothing more, an end included; call it where nothing may come."""
        readable, _, _ = select.select([self._connection], [], [], 0)
        return not readable and not self._connection.pending() and not self._ahead

    def send(self, message: Message) -> None:
        """Send one message; what comes meanwhile is kept, so that two sides that both send do not wait for each other.

        Raises
        ------
        Unavailable, ProtocolError
            The connection is gone, or the peer does not read.
        """
        parts = message.parts()
        size = sum(map(len, parts))
        body = [parts.pop()] if size > ONE_RECORD else []  # a copy of it would take as long as its encryption
        deadline = time.monotonic() + self._timeout_s
        try:
            self._connection.settimeout(0.0)
            for part in (b"".join([LENGTH.pack(size), *parts]), *body):
                self._write(memoryview(part).cast("B"), deadline)
        except OSError as error:
            raise self._failed(error) from error
        self.sent += LENGTH.size + size

    def _write(self, view: memoryview, deadline: float) -> None:
        while view:
            try:
                view = view[self._connection.send(view) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self._wait_to_write(deadline)

    def _wait_to_write(self, deadline: float) -> None:
        listens = [self._connection] if len(self._ahead) < MOST_AHEAD else []
        left_s = max(deadline - time.monotonic(), 0.0)
        readable, writable, _ = select.select(listens, [self._connection], [], left_s)
        if not readable and not writable:
            raise TimeoutError(f"{self.name} does not read")
        if readable:
            with contextlib.suppress(ssl.SSLWantReadError):  # a part of a record
                received = self._connection.recv(ONE_RECORD)
                if not received:
                    raise Unavailable(f"{self.name} closed the connection", code="connection-closed")
                self._ahead += received

    def receive(self, limit: int, wait_s: float | None = None) -> Message:
        """Wait for one message.

        Parameters
        ----------
        limit : int
            Longest frame that can be legal now, bytes; a longer one is refused before it is read.
        wait_s : float, optional
            Longest wait for the message to begin, seconds.

        Raises
        ------
        Unavailable
            Nothing came in time (``peer-timeout``), or the connection is gone (``connection-closed``).
        ProtocolError
            The frame is too long or malformed.
        VeilRayError
            What the peer reported as its failure.
        """
        begun = memoryview(bytearray(LENGTH.size + 1))  # length and kind, most often by one read
        count = self._some(begun, self._timeout_s if wait_s is None else wait_s)
        deadline = time.monotonic() + self._timeout_s
        self._fill(begun[count : LENGTH.size], self._timeout_s)
        (size,) = LENGTH.unpack_from(begun)
        if not 0 < size <= limit:
            raise ProtocolError(f"{self.name} sent a frame of {size} bytes, {limit} may come", code="frame-too-long")
        self._fill(begun[max(count, LENGTH.size) :], deadline - time.monotonic())
        frame = room(kind := begun[-1], size)
        frame[0] = kind
        self._fill(frame[1:], deadline - time.monotonic())
        message = decode(frame)
        self.received += LENGTH.size + size
        if isinstance(message, Failure):
            raise message.error(self.name)
        return message

    def _fill(self, view: memoryview, timeout_s: float) -> None:
        """Read exactly as many bytes as fit before the time is over, however slowly they drip."""
        deadline = time.monotonic() + timeout_s
        while view:
            view = view[self._some(view, deadline - time.monotonic()) :]

    def _some(self, view: memoryview, timeout_s: float) -> int:
        """Read at least one byte, and say how many."""
        if self._ahead:
            count = min(len(view), len(self._ahead))
            view[:count] = self._ahead[:count]
            del self._ahead[:count]
            return count
        try:
            self._connection.settimeout(max(timeout_s, 1e-3))
            count = self._connection.recv_into(view)
        except OSError as error:
            raise self._failed(error) from error
        if count == 0:
            raise Unavailable(f"{self.name} closed the connection", code="connection-closed")
        return count

    def _failed(self, error: OSError) -> VeilRayError:
        found = tls.explain(error)
        return type(found)(f"{self.name}: {found}", code=found.code)

    def fail(self, error: VeilRayError) -> None:
        """Tell the peer why the exchange ends, and close; the peer may be gone already."""
        with contextlib.suppress(VeilRayError):
            self.send(Failure.of(error))
        tls.linger(self._connection)
        self.close()

    def interrupt(self) -> None:
        """End the connection under another thread that uses it: its next send or receive fails."""
        end_both_ways(self._connection)

    def close(self) -> None:
        """Close the connection; from another thread, it ends a wait in `receive`."""
        end_both_ways(self._connection)
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def end_both_ways(connection: socket.socket) -> None:
    """Wake whoever waits in accept or recv on a socket, which closing alone would not.

    `SSLSocket.shutdown` would drop the TLS object first, and that other thread could then read or write in the clear.
    """
    with contextlib.suppress(OSError):  # never connected, or ended by the peer
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
