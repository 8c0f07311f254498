"""Accepts connections from known certificates, one thread each, with limits; what is said there is the handler's."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.core import logs, tls
from dicom_node.core.credentials import Credentials
from dicom_node.core.errors import ConfigError, ProtocolError, Unavailable, VeilRayError

from .channel import Channel, end_both_ways

log = logs.get(__name__)
BACKLOG = 128
#: A connection that has not ended by then dies with the process.
STOP_S = 5.0


@dataclass(frozen=True)
class Limits:
    """How much a server takes on at once.

    Attributes
    ----------
    connections : int
        Open connections, those in their handshake included.
    connections_per_peer : int
        Open connections of one certificate.
    handshake_s, message_s : float
        Time for the TLS handshake and for any one message, seconds.
    """

    connections: int
    connections_per_peer: int
    handshake_s: float
    message_s: float


class Server:
    """A listening socket and its connections.

    The accepting thread only accepts: the handshake, which a hostile caller can stretch, runs in the connection's own
    thread, with a time-out.

    Parameters
    ----------
    host, port
        Address to listen on; port 0 takes a free one.
    credentials : Credentials
        What is shown to callers; asked anew for each connection.
    peers : frozenset of str
        Fingerprints of the certificates that may call; `admit` replaces them.
    handle : callable
        Serves one connection until it returns or raises.
    """

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        peers: frozenset[str],
        limits: Limits,
        handle: Callable[[Channel], None],
    ) -> None:
        self._credentials = credentials
        self._peers = peers
        self._limits = limits
        self._handle = handle
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._per_peer: Counter[str] = Counter()
        self._channels: set[Channel] = set()
        self._stopping = False
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}", code="listen") from error
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether connections are accepted."""
        return self._thread.is_alive()

    @property
    def connections(self) -> int:
        """How many connections are open, those in their handshake included."""
        return len(self._sockets)

    def admit(self, peers: frozenset[str]) -> None:
        """Replace the list of those who may call; `sweep` ends what others have open."""
        self._peers = peers

    def sweep(self) -> list[tuple[str, str]]:
        """End the connections whose certificate may not call any more.

        Returns
        -------
        list of tuple of str
            Fingerprint and why: ``certificate-not-allowed`` or ``certificate-revoked``.
        """
        with self._lock:
            judged = [(one, self._judge(one)) for one in self._channels]
        ended = [(one, error) for one, error in judged if error is not None]
        for channel, _ in ended:
            channel.interrupt()
        return [(channel.peer, error.code) for channel, error in ended]

    def require(self, channel: Channel) -> None:
        """Judge a kept connection anew at each request: `sweep` may not have come round yet.

        Raises
        ------
        ProtocolError
            Its certificate may not call any more (``certificate-not-allowed``, ``certificate-revoked``).
        """
        error = self._judge(channel)
        if error is not None:
            raise error

    def _judge(self, channel: Channel) -> ProtocolError | None:
        if channel.peer not in self._peers:
            return ProtocolError("the certificate is not on the list", code="certificate-not-allowed")
        if self._credentials.revoked(channel.certificate):
            return ProtocolError("the certificate was revoked by its authority", code="certificate-revoked")
        return None

    def stop(self) -> None:
        """Stop accepting and end all connections; a query on its way is burned."""
        self._stopping = True
        with self._lock:
            open_now = [self._listener, *self._sockets]
            threads = [self._thread, *self._threads]
        for one in open_now:
            _end(one)
        deadline = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._stopping:
            try:
                plain, address = self._listener.accept()
            except OSError as error:
                if not self._stopping:
                    # Out of file descriptors, or the caller gave up while it waited; both pass.
                    log.warning("accept-failed", **logs.describe(error))
                    time.sleep(0.1)
                continue
            with self._lock:
                full = len(self._sockets) >= self._limits.connections or self._stopping
                if not full:
                    self._sockets.add(plain)
            if full:
                log.warning("connection-refused", address=str(address[0]), code="too-many-connections")
                plain.close()
                continue
            arguments = (plain, str(address[0]))
            thread = threading.Thread(target=self._serve, args=arguments, name="connection", daemon=True)
            with self._lock:
                self._threads.add(thread)
                thread.start()  # within the lock: `stop` joins no thread that was not started

    def _serve(self, plain: socket.socket, address: str) -> None:
        opened: socket.socket = plain
        try:
            connection = tls.handshake(plain, self._credentials.server, self._limits.handshake_s, server_side=True)
            with self._lock:  # wrapping detached the plain socket
                self._sockets.discard(plain)
                self._sockets.add(connection)
            opened = connection
            self._converse(Channel(connection, f"the peer at {address}", self._limits.message_s))
        except VeilRayError as error:
            log.warning("connection-refused", address=address, **logs.describe(error))
        except Exception as error:
            # A fault of ours ends this connection and is told; the others go on.
            log.error("connection-fault", address=address, **logs.describe(error))
        finally:
            with self._lock:
                self._sockets.discard(opened)
                self._threads.discard(threading.current_thread())
            _end(opened)

    def _converse(self, channel: Channel) -> None:
        peer = channel.peer
        refused: VeilRayError | None
        with self._lock:
            self._channels.add(channel)  # before it is judged: what changes from now on is `sweep`'s to see
            self._per_peer[peer] += 1
            refused = self._judge(channel)
            if refused is None and self._per_peer[peer] > self._limits.connections_per_peer:
                refused = Unavailable("too many connections of this certificate", code="too-many-connections")
        try:
            if refused is None:
                self._handle(channel)
            else:
                log.warning("connection-refused", fingerprint=peer, code=refused.code)
                channel.fail(refused)
        finally:
            with self._lock:
                self._channels.discard(channel)
                self._per_peer[peer] -= 1
                if not self._per_peer[peer]:
                    del self._per_peer[peer]


def _end(one: socket.socket) -> None:
    end_both_ways(one)
    one.close()
