"""One association as acceptor: pynetdicom's Association (PS3.8 Section 7, PS3.7 Section 9 and Annex D), bounded.

Each override names the weakness of pynetdicom 3.0.4 that it closes.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import sys
import time
from typing import Any

from pynetdicom import association, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE, N_EVENT_REPORT
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.service_class import StorageServiceClass, VerificationServiceClass
from pynetdicom.transport import AddressInformation, AssociationServer

from ..core import logs
from ..core.errors import ProtocolError, VeilRayError
from ..store import Store
from . import admission, storage
from .admission import AlertLimit, Connections, Rejection, Whitelist
from .storage import Reception
from .upper_layer import IDLE_S, LINGER_S, Socket, UpperLayer

log = logs.get(__name__)
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
#: Longest command set, and longest data set of an operation that is not offered.
LONGEST_COMMAND = 64 * 1024
UNRECOGNISED_OPERATION = 0x0211


class Server(AssociationServer):  # type: ignore[misc]  # pynetdicom is untyped
    """The listener, and what its associations share."""

    request_queue_size = 128

    def __init__(
        self, entity: Any, address: tuple[str, int], store: Store, whitelist: Whitelist, connections: Connections
    ) -> None:
        self.store, self.whitelist, self.connections = store, whitelist, connections
        self.tls: ssl.SSLContext | None = None  # not the library's `ssl_context`: see `Association._secure`
        self.open: set[Association] = set()
        self._alerts = AlertLimit()
        self._stopping = False
        super().__init__(entity, address, entity.ae_title, [])

    def get_request(self) -> Any:
        """Accept; when descriptors run out, the library would try again without a pause."""
        try:
            return self.socket.accept()
        except OSError as error:
            if not self._stopping:
                log.error("accept-failed", **logs.describe(error))
                time.sleep(0.05)
            raise

    def finish_request(self, request: socket.socket, client_address: Any) -> None:
        """Start an association of our kind; nothing here waits for the peer."""
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        newcomer = Association(self, request, client_address)
        listed = self.whitelist.lists(newcomer.address)
        evicted = self.connections.enter(newcomer, newcomer.address, listed=listed)
        if isinstance(evicted, Association):
            evicted.interrupt()
        self.open.add(newcomer)
        try:
            newcomer.start()
        except RuntimeError:  # the system gives no more threads
            self.forget(newcomer)
            raise

    def forget(self, ended: Association) -> None:
        """Count an association no longer."""
        self.connections.leave(ended)
        self.open.discard(ended)

    def alert(self, what: str, address: str, detail: dict[str, str | int]) -> None:
        """Log a refusal, and audit it as often as `AlertLimit` lets it."""
        count = self._alerts.passes(address, f"{what} {detail['reason']}")
        log.warning(what, address=address, ae_title=detail.get("ae_title"), code=detail["reason"])
        if count:
            try:
                self.store.alert(what, address, {**detail, "count": count})
            except VeilRayError as error:  # the refusal itself stands, whether or not it could be recorded
                log.error("alert-not-recorded", address=address, **logs.describe(error))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a connection that could not be served; the library prints the trace."""
        error = sys.exception()
        log.error("accept-failed", address=str(client_address[0]), **(logs.describe(error) if error else {}))

    def shutdown(self) -> None:
        """Stop listening, without waiting for the loop's next look at the socket."""
        self._stopping = True
        self.socket.shutdown(socket.SHUT_RDWR)
        super(AssociationServer, self).shutdown()
        self.server_close()


class Association(association.Association):  # type: ignore[misc]  # pynetdicom is untyped
    """A connection from accept to close; `run_reactor` is its thread."""

    def __init__(self, server: Server, connection: socket.socket, peer: tuple[Any, ...]) -> None:
        super().__init__(server.ae, MODE_ACCEPTOR)
        self._server = server
        self.address = str(peer[0])
        self.studies: set[str] = set()  # Study Instance UIDs that came so far, that of the data set under way included
        self._reception: Reception | None = None
        self.dul, self.dimse, self.acse = UpperLayer(self), Dimse(self), Acse(self)
        self.acse_timeout, self.network_timeout = self.ae.acse_timeout, self.ae.network_timeout  # the new DUL's timers
        self.set_socket(Socket(self, connection))
        self.requestor.address_info = AddressInformation.from_tuple(peer)
        self.acceptor.ae_title = self.ae.ae_title
        self.acceptor.maximum_length = self.ae.maximum_pdu_size
        self.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        self.acceptor.implementation_version_name = self.ae.implementation_version_name
        self.bind(evt.EVT_C_STORE, storage.answer)

    def run_reactor(self) -> None:
        """Serve the connection until it ends, in whatever way, and leave nothing behind."""
        try:
            if self._secure():
                super().run_reactor()
        except Exception as error:  # a fault of ours ends this association, never the node
            log.error("association-fault", address=self.address, **logs.describe(error))
            self.abort()
        finally:
            self.interrupt()
            if self._started_dul:
                self.dul.join(2 * LINGER_S)
            self.dul.socket.close()
            if self._reception is not None:
                self._reception.discard()
            self._server.forget(self)

    def interrupt(self) -> None:
        """Make the next read see the end of the connection; a response in the making is still sent."""
        with contextlib.suppress(OSError, TypeError):  # closed meanwhile
            # Not SSLSocket.shutdown: it drops the TLS layer, and the rest would be sent in the clear.
            socket.socket.shutdown(self.dul.socket.socket, socket.SHUT_RD)

    def begin(self, sop_class_uid: str | None, sop_instance_uid: str | None, context_id: int) -> Reception:
        """Begin to receive a data set; there is never more than one."""
        store, context = self._server.store, self._accepted_cx[context_id]
        source = f"{self.requestor.ae_title}@{self.address}"
        self._reception = Reception(
            store, context, str(sop_class_uid or ""), str(sop_instance_uid or ""), source, self.studies
        )
        return self._reception

    def _secure(self) -> bool:
        """Take the TLS handshake in this thread, in bounded time: the library does it in the accept loop."""
        transport, tls = self.dul.socket, self._server.tls
        transport.socket.settimeout(self.acse_timeout)
        if tls is not None:
            try:
                transport.socket = tls.wrap_socket(transport.socket, server_side=True, do_handshake_on_connect=False)
                transport.socket.do_handshake()  # its time-out is that of the whole handshake
            except OSError as error:
                if isinstance(error, ssl.SSLError):
                    reason = str(error.reason or type(error).__name__)[:64]
                    self._server.alert("tls-failed", self.address, {"reason": reason})
                return False
        return True

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """Answer a request by its kind; the library goes by the SOP class and aborts where it knows none."""
        try:
            context = self._accepted_cx[context_id]
            if isinstance(msg, C_CANCEL):  # PS3.7 9.3.2.3: there is no response to it
                return
            if msg.MessageID is None or msg.MessageIDBeingRespondedTo is not None:
                raise ProtocolError("the peer answered a request that was never made")
            if isinstance(msg, C_STORE):
                StorageServiceClass(self).SCP(msg, context)
            elif isinstance(msg, C_ECHO):
                VerificationServiceClass(self).SCP(msg, context)
            else:
                answer = type(msg)()
                answer.MessageIDBeingRespondedTo, answer.Status = msg.MessageID, UNRECOGNISED_OPERATION
                self.dimse.send_msg(answer, context_id)
        except Exception as error:
            log.warning("association-aborted", address=self.address, **logs.describe(error))
            self.abort()
        finally:
            if not isinstance(msg, N_EVENT_REPORT):  # the library hands those over beside the queue
                self.dimse.msg_queue.task_done()  # `Socket.ready` waits for it


class Acse(ACSE):  # type: ignore[misc]  # pynetdicom is untyped
    """Association negotiation."""

    def negotiate_association(self) -> None:
        """Admit the caller, then let the library negotiate with contexts that are made for this very request.

        The library knows no addresses, counts associations in all alone, and takes other storage classes only by a
        switch that would hold for every acceptor in the process.
        """
        request, caller, server = self.requestor.primitive, self.assoc, self.assoc._server
        calling, called = str(request.calling_ae_title).strip(), str(request.called_ae_title).strip()
        rejection: Rejection | None = admission.APPLICATION_CONTEXT_UNKNOWN
        if request.application_context_name == APPLICATION_CONTEXT:
            rejection = server.whitelist.judge(calling, called, caller.address)
        if rejection is None and not server.connections.associate(caller):
            rejection = admission.TOO_MANY
        if rejection is None:
            self.socket.socket.settimeout(caller.network_timeout)
            self.acceptor.supported_contexts = storage.contexts(request.presentation_context_definition_list)
            super().negotiate_association()
        else:
            detail: dict[str, str | int] = {"ae_title": calling, "reason": rejection.code}
            server.alert("association-rejected", caller.address, detail)
            self.send_reject(rejection.result, rejection.source, rejection.reason)
            caller.kill()


class Dimse(DIMSEServiceProvider):  # type: ignore[misc]  # pynetdicom is untyped
    """Messages, assembled from fragments."""

    message: DIMSEMessage | None

    def get_msg(self, block: bool = False) -> Any:
        """Wait a little for the next message: the library asks a thousand times a second."""
        try:
            return self.msg_queue.get(timeout=IDLE_S)
        except queue.Empty:
            return None, None

    def receive_primitive(self, primitive: Any) -> None:
        """Take the fragments of a P-DATA-TF PDU one by one.

        The library takes fragments in any order and context and drops those behind a message's last one. A data set
        it holds in memory, whatever its length, or in the system's temporary folder, where an abort leaves it. Here
        it goes into the store as it comes: the library writes it to `DIMSEMessage.data_set`, which is ours.
        """
        try:
            for context_id, content in primitive.presentation_data_value_list:
                self._receive(context_id, content)
        except Exception as error:
            log.warning("association-aborted", address=self.assoc.address, **logs.describe(error))
            self.assoc.dul.event_queue.put("Evt19")  # an invalid PDU: what the library itself does for a message

    def _receive(self, context_id: int, content: bytes) -> None:
        message, is_command = self.message or DIMSEMessage(), bool(content[0] & 1)
        if self.msg_queue.unfinished_tasks:
            raise ProtocolError("a request came before the one before it was answered")
        if context_id not in self.assoc._accepted_cx or message.context_id not in (None, context_id):
            raise ProtocolError("a fragment came under a context that was not accepted")
        if is_command == (message.context_id is not None):
            raise ProtocolError("a command came where a data set was due, or a data set before its command")
        if message.encoded_command_set.tell() + message.data_set.tell() > LONGEST_COMMAND:
            raise ProtocolError("a command set, or the data set of no known operation, is too long")
        fragment = P_DATA()
        fragment.presentation_data_value_list = [[context_id, content]]
        self.message = message
        super().receive_primitive(fragment)
        if is_command and self.message is not None and isinstance(message, C_STORE_RQ):  # its data set follows
            uids = message.command_set.get("AffectedSOPClassUID"), message.command_set.get("AffectedSOPInstanceUID")
            message.data_set = self.assoc.begin(*uids, context_id)
