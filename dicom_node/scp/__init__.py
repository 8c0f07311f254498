"""The site's DICOM service: Verification and Storage as SCP (PS3.4 Annexes A and B) over TCP or TLS.

Reading order: this listener, `association` (PS3.8, one connection), `negotiation` (the one user of pynetdicom here),
`admission` (who and how many), `dimse` (commands), `storage` (one C-STORE).

pynetdicom's own acceptor is not used: it hands each connection to two polling threads, takes TLS handshakes in the
accept loop, buffers PDUs of any announced length and fails beyond 1024 descriptors.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time

from ..core import logs
from ..core.errors import ConfigError
from ..core.settings import Settings
from ..store import Store
from ..tls import server_context
from .admission import Connections, Whitelist
from .association import Acceptor, Association

log = logs.get(__name__)
BACKLOG = 128
#: How long a stopping service waits for the instances that are being stored.
STOP_S = 10.0


class Scp:
    """The listener and its connections.

    Parameters
    ----------
    settings : Settings
        The section ``scp`` is used.
    store : Store
        Where instances go; it also decides which SOP classes are kept.
    tls : ssl.SSLContext, optional
        Context of the server side when ``scp.tls`` is set.

    Raises
    ------
    ConfigError
        Addresses, certificates or the port cannot be used.
    """

    def __init__(self, settings: Settings, store: Store, tls: ssl.SSLContext | None = None) -> None:
        if settings.scp.tls is not None and tls is None:
            tls = server_context(settings.scp.tls)
        self._settings = settings.scp
        self._shared = Acceptor(settings.scp, store, Whitelist(settings.scp), tls, Connections(settings.scp))
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open: dict[Association, threading.Thread] = {}

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._listener is not None, "the service is not started"
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Listen; returns at once."""
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on scp.host {host}, scp.port {port}: {error.strerror}") from error
        threading.Thread(target=self._accept, args=(self._listener,), name="scp-accept", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections, let stores in progress end, close the rest."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            still_open = dict(self._open)
        for association in still_open:
            association.interrupt()
        deadline = time.monotonic() + STOP_S
        for thread in still_open.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def open_studies(self) -> set[str]:
        """Study Instance UIDs that open associations have carried: none of these studies is complete yet."""
        with self._lock:
            return {uid for association in self._open for uid in association.studies}

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError as error:
                if self._listener is not listener:
                    return
                log.error("accept-failed", **logs.describe(error))  # e.g. out of descriptors: it passes
                time.sleep(0.05)
                continue
            self._admit(connection, str(peer[0]))

    def _admit(self, connection: socket.socket, address: str) -> None:
        association = Association(connection, address, self._shared)
        listed = self._shared.whitelist.lists(address)
        evicted = self._shared.connections.enter(association, address, listed=listed)
        if isinstance(evicted, Association):
            evicted.interrupt()
        thread = threading.Thread(target=self._serve, args=(association,), name="scp-association", daemon=True)
        with self._lock:
            self._open[association] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more threads
            log.error("accept-failed", **logs.describe(error))
            self._forget(association)
            self._shared.connections.leave(association)
            connection.close()

    def _serve(self, association: Association) -> None:
        try:
            association.run()
        finally:
            self._forget(association)

    def _forget(self, association: Association) -> None:
        with self._lock:
            self._open.pop(association, None)
