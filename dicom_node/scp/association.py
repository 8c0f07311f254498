"""One connection as association acceptor: the DICOM Upper Layer protocol (PS3.8 Section 9.2) in one thread.

States of Table 9-10 and where they are here: Sta2 `_negotiate` until the request has come, Sta3 within it, Sta6
`_serve`, Sta8 answered at once, Sta13 `_linger`. Reading, writing to disk and answering are one thread's work, so a
sender is never ahead of the disk by more than the buffer of `PduReader`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

from ..core import logs
from ..core.errors import ProtocolError, VeilRayError
from ..core.settings import ScpSettings
from ..store import Store
from . import admission, dimse, negotiation, pdu
from .admission import AlertLimit, Connections, Rejection, Whitelist
from .dimse import Command
from .negotiation import Context
from .pdu import Closed, PduReader, Violation
from .storage import Reception

log = logs.get(__name__)
#: The longest A-ASSOCIATE-RQ read: 128 contexts with 40 transfer syntaxes each fit.
LONGEST_REQUEST = 1 << 18
#: How long a peer has to read our last PDU and close (ARTIM, PS3.8 Section 9.1.5).
LINGER_S = 2.0
#: The buffer holds this many of the longest PDUs, so that a fast sender costs few reads.
PDUS_AHEAD = 3


@dataclass(frozen=True)
class Acceptor:
    """What all connections of one SCP share."""

    settings: ScpSettings
    store: Store
    whitelist: Whitelist
    tls: ssl.SSLContext | None
    connections: Connections
    alerts: AlertLimit = field(default_factory=AlertLimit)


class Association:
    """A connection from accept to close; `run` is its thread."""

    def __init__(self, connection: socket.socket, address: str, acceptor: Acceptor) -> None:
        self._socket = connection
        self._address = address
        self._shared = acceptor
        self._calling = ""
        self._contexts: dict[int, Context] = {}
        self._peer_maximum = 0
        self._reception: Reception | None = None
        self._studies: set[str] = set()

    @property
    def studies(self) -> frozenset[str]:
        """Study Instance UIDs that came over this association so far, that of the data set under way included."""
        reception = self._reception  # the association's thread may drop it meanwhile, but only after noting its study
        under_way = reception.study_instance_uid if reception is not None else None
        return frozenset(self._studies.copy() | ({under_way} if under_way is not None else set()))

    def run(self) -> None:
        """Serve the connection until it ends, in whatever way."""
        try:
            self._secure()
            if self._negotiate():
                self._serve()
        except Closed:
            pass
        except TimeoutError:
            self._abort(pdu.NOT_SPECIFIED)
            log.info("association-timed-out", address=self._address, ae_title=self._calling)
        except ProtocolError as error:
            self._abort(error.reason if isinstance(error, Violation) else pdu.INVALID_PARAMETER)
            log.warning("association-aborted", address=self._address, ae_title=self._calling, **logs.describe(error))
        except OSError as error:
            log.info("connection-lost", address=self._address, **logs.describe(error))
        except Exception as error:  # a fault of ours ends this connection, never the node
            self._abort(pdu.NOT_SPECIFIED)
            log.error("association-fault", address=self._address, **logs.describe(error))
        finally:
            if self._reception is not None:
                self._reception.discard()
            self._shared.connections.leave(self)
            self._socket.close()

    def interrupt(self) -> None:
        """Make the thread's next read see the end of the connection; a response in the making is still sent."""
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown: it drops the TLS layer, and the rest would be sent in the clear.
            socket.socket.shutdown(self._socket, socket.SHUT_RD)

    def _secure(self) -> None:
        self._socket.settimeout(self._shared.settings.acse_timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._shared.tls is not None:
            try:
                self._socket = self._shared.tls.wrap_socket(
                    self._socket, server_side=True, do_handshake_on_connect=False
                )
                self._socket.do_handshake()  # its time-out is that of the whole handshake
            except TimeoutError:
                raise Closed from None
            except ssl.SSLError as error:
                self._alert("tls-failed", {"reason": str(error.reason or type(error).__name__)[:64]})
                raise Closed from error

    def _negotiate(self) -> bool:
        """Answer the association request; true when an association stands."""
        limits = self._shared.settings
        self._reader = PduReader(self._socket)
        kind, body = self._reader.next(LONGEST_REQUEST, limits.acse_timeout_s)
        if kind != pdu.ASSOCIATE_RQ:
            raise Violation("the first PDU is not an association request", pdu.UNEXPECTED_PDU)
        request = negotiation.decode(struct.pack(">BxI", kind, len(body)) + body)
        self._calling = request.calling
        rejection = self._judge(request)
        if rejection is not None:
            self._alert("association-rejected", {"ae_title": request.calling, "reason": rejection.code})
            self._socket.sendall(struct.pack(">BxIxBBB", 3, 4, rejection.result, rejection.source, rejection.reason))
            self._linger()
            return False
        self._contexts = negotiation.negotiate(request)
        self._peer_maximum = request.maximum_length
        self._reader.enlarge(PDUS_AHEAD * limits.maximum_pdu_size)
        self._socket.settimeout(limits.network_timeout_s)
        self._socket.sendall(negotiation.accept(request, self._contexts, limits.maximum_pdu_size))
        return True

    def _judge(self, request: negotiation.Request) -> Rejection | None:
        if not request.protocol_version & 1:
            return admission.VERSION_UNKNOWN
        if request.application_context != negotiation.APPLICATION_CONTEXT:
            return admission.APPLICATION_CONTEXT_UNKNOWN
        rejection = self._shared.whitelist.judge(request.calling, request.called, self._address)
        if rejection is None and not self._shared.connections.associate(self):
            return admission.TOO_MANY
        return rejection

    def _serve(self) -> None:
        limits = self._shared.settings
        command_bytes = bytearray()
        command: Command | None = None
        context_id = 0
        while True:
            kind, body = self._reader.next(limits.maximum_pdu_size, limits.network_timeout_s)
            if kind == pdu.RELEASE_RQ:
                self._socket.sendall(struct.pack(">BxIxxxx", 6, 4))
                self._linger()
                return
            if kind == pdu.ABORT:
                raise Closed
            if kind != pdu.P_DATA:
                raise Violation("a PDU came that has no place in an association", pdu.UNEXPECTED_PDU)
            for where, is_command, is_last, content in dimse.fragments(body):
                if where not in self._contexts or (command is not None and where != context_id):
                    raise Violation("a fragment came under a context that was not accepted", pdu.INVALID_PARAMETER)
                if is_command:
                    if command is not None or len(command_bytes) + len(content) > dimse.LONGEST_COMMAND:
                        raise Violation("a command came where a data set was due", pdu.INVALID_PARAMETER)
                    context_id = where
                    command_bytes += content
                    if is_last:
                        command = dimse.decode(command_bytes)
                        command_bytes.clear()
                        if self._begin(command, context_id):
                            command = None
                elif command is None:
                    raise Violation("a data set came before its command", pdu.INVALID_PARAMETER)
                else:
                    if self._reception is not None:
                        self._reception.write(content)
                    if is_last:
                        self._end(command, context_id)
                        command = None

    def _begin(self, command: Command, context_id: int) -> bool:
        """Act on a command; true when no data set follows, so that the message is complete."""
        if command.field == dimse.C_STORE:
            self._reception = Reception(
                self._shared.store,
                self._contexts[context_id],
                command.sop_class_uid,
                command.sop_instance_uid,
                f"{self._calling}@{self._address}",
            )
        if not command.has_data_set:
            self._end(command, context_id)
        return not command.has_data_set

    def _end(self, command: Command, context_id: int) -> None:
        """Answer a complete message."""
        comment = ""
        if self._reception is not None:
            reception = self._reception
            status, comment = reception.finish()
            if reception.study_instance_uid is not None:
                self._studies.add(reception.study_instance_uid)
            self._reception = None
        elif command.field == dimse.C_ECHO:
            status = dimse.SUCCESS
        elif command.field == dimse.C_CANCEL:  # PS3.7 9.3.2.3: there is no response to it
            return
        else:
            status = dimse.UNRECOGNISED_OPERATION
        answer = dimse.response(command, status, comment)
        self._socket.sendall(dimse.command_pdus(answer, context_id, self._peer_maximum))

    def _abort(self, reason: int) -> None:
        """Send A-ABORT as service provider, if the peer still listens."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(LINGER_S)
            self._socket.sendall(struct.pack(">BxIxxBB", 7, 4, 2, reason))
            self._linger()

    def _linger(self) -> None:
        """Wait for the peer to close: closing on unread bytes would reset the connection and lose our last PDU."""
        deadline = time.monotonic() + LINGER_S
        scratch = bytearray(65536)
        with contextlib.suppress(OSError):
            self._socket.settimeout(LINGER_S)
            while self._socket.recv_into(scratch) and time.monotonic() < deadline:
                pass

    def _alert(self, what: str, detail: dict[str, str | int]) -> None:
        count = self._shared.alerts.passes(self._address, f"{what} {detail.get('reason')}")
        log.warning(what, address=self._address, ae_title=self._calling, code=detail.get("reason"))
        if count:
            try:
                self._shared.store.alert(what, self._address, {**detail, "count": count})
            except VeilRayError as error:  # the refusal itself stands, whether or not it could be recorded
                log.error("alert-not-recorded", address=self._address, **logs.describe(error))
