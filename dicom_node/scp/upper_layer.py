"""The connection of one association: pynetdicom's DICOM Upper Layer (PS3.8 Section 9.2), bounded.

The state machine is the library's own; each override names the weakness of pynetdicom 3.0.4 that it closes.
"""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from typing import Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.transport import AssociationSocket

from ..core import logs
from ..core.errors import ProtocolError

log = logs.get(__name__)
#: The longest A-ASSOCIATE-RQ read: 128 contexts with 40 transfer syntaxes each fit.
LONGEST_REQUEST = 1 << 18
#: How long a peer has to read our last PDU and close (ARTIM, PS3.8 Section 9.1.5).
LINGER_S = 2.0
#: How long a thread with nothing to do sleeps; the library's 1 ms costs a core for twenty idle associations.
IDLE_S = 0.01


class Socket(AssociationSocket):  # type: ignore[misc]  # pynetdicom is untyped
    """A connection whose reads are bounded in length and in time."""

    limit = LONGEST_REQUEST

    @property
    def ready(self) -> bool:
        """Tell whether a PDU has begun to arrive that may be taken now.

        The library's `select` fails beyond 1024 descriptors, and it reads ahead without bound while a request is being
        answered. Safe: without an asynchronous window a peer has to wait for its response anyway.
        """
        if self.socket is None or not self._is_connected:
            return False
        if self.assoc.dimse.msg_queue.unfinished_tasks or not self.assoc.dul.to_provider_queue.empty():
            time.sleep(0.0005)
            return False
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(1000 * IDLE_S if self.assoc.dul.state_machine.current_state == "Sta6" else 1))
        except (OSError, ValueError):  # closed
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, or what came before the peer closed.

        The library buffers any announced length, in pieces of 4 kB, however slowly they drip.

        Raises
        ------
        ProtocolError
            More is announced than is allowed here; nothing of it is read.
        TimeoutError
            It did not come in time.
        """
        if nr_bytes > self.limit:
            raise ProtocolError("a PDU is announced longer than is allowed here")
        content, done = bytearray(nr_bytes), 0
        deadline = time.monotonic() + self.socket.gettimeout()
        with memoryview(content) as view:
            while done < nr_bytes and (count := self.socket.recv_into(view[done:])):
                done += count
                if done < nr_bytes and time.monotonic() > deadline:
                    raise TimeoutError
        return content[:done] if done < nr_bytes else content

    def linger(self) -> None:
        """Wait for the peer to close: closing on unread bytes would reset the connection and lose our last PDU."""
        deadline, scratch = time.monotonic() + LINGER_S, bytearray(65536)
        with contextlib.suppress(OSError, AttributeError):  # closed meanwhile
            self.socket.settimeout(LINGER_S)
            while self.socket.recv_into(scratch) and time.monotonic() < deadline:
                pass

    def _shutdown_socket(self) -> None:
        """Close for certain: the library leaves open what the peer has reset."""
        connection = self.socket
        super()._shutdown_socket()
        if connection is not None:
            connection.close()


class UpperLayer(DULServiceProvider):  # type: ignore[misc]  # pynetdicom is untyped
    """The provider and its thread."""

    def __init__(self, assoc: Any) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._run_loop_delay = 0  # `Socket.ready` waits instead, and wakes when something comes

    def run_reactor(self) -> None:
        """Serve the connection to its end.

        When an action fails on what the peer sent, the library ends this thread without an abort and leaves the
        association waiting. Safe: the state machine has stopped for good when this code runs.
        """
        try:
            super().run_reactor()
        except Exception as error:
            log.warning("association-aborted", address=self.assoc.address, **logs.describe(error))
            if self.state_machine.current_state != "Sta13":  # else one was sent
                abort = A_ABORT_RQ()
                abort.source, abort.reason_diagnostic = 2, 0
                self._send(abort)
            self.socket.linger()
        finally:
            self.socket.close()
            self.to_user_queue.put(None)  # "no request came": wakes an association that still waits for one

    def send_pdu(self, primitive: Any) -> None:
        """Send; our response ends the silence, or the library would abort after a store slower than the time-out."""
        self._idle_timer.restart()
        super().send_pdu(primitive)

    def _read_pdu_data(self) -> None:
        """Read a PDU; one that is too long is an invalid one (Evt19), which the state machine answers by an abort."""
        waiting = self.state_machine.current_state == "Sta2"
        self.socket.limit = LONGEST_REQUEST if waiting else self.assoc.acceptor.maximum_length
        try:
            super()._read_pdu_data()
        except ProtocolError:
            self.event_queue.put("Evt19")

    def _is_transport_event(self) -> bool:
        """In Sta13 the library closes at once, which can destroy its last PDU: here the peer may close first."""
        if self.state_machine.current_state != "Sta13":
            return bool(super()._is_transport_event())
        self.socket.linger()
        self.socket.close()
        return True
