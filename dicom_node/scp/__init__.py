"""The site's DICOM service: Verification and Storage as SCP (PS3.4 Annexes A and B) over TCP or TLS.

Reading order: this service, `association` (one peer's association), `upper_layer` (its connection), `admission` (who
and how many), `storage` (one C-STORE). pynetdicom does the protocol; what is overridden of it stands in `association`
and `upper_layer`, each with the weakness that it closes.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time

from pynetdicom import AE, _config

from ..core.errors import ConfigError
from ..core.settings import Settings
from ..part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from ..store import Store
from ..tls import server_context
from .admission import Connections, Whitelist
from .association import Server

_config.LOG_HANDLER_LEVEL = "none"  # the library's own handlers write identifiers into logs
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its errors name no peer; ours do, and name no patient
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
        self._limits = limits = settings.scp
        self._store, self._whitelist = store, Whitelist(limits)
        self._tls = server_context(limits.tls) if limits.tls is not None and tls is None else tls
        self._entity = AE(limits.ae_title)
        self._entity.acse_timeout = limits.acse_timeout_s
        self._entity.network_timeout = limits.network_timeout_s
        self._entity.maximum_pdu_size = limits.maximum_pdu_size
        self._entity.maximum_associations = 1 << 30  # `Connections` counts them, per address too
        self._entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None, "the service is not started"
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen; returns at once."""
        host, port, connections = self._limits.host, self._limits.port, Connections(self._limits)
        try:
            self._server = Server(self._entity, (host, port), self._store, self._whitelist, connections)
        except OSError as error:
            raise ConfigError(f"cannot listen on scp.host {host}, scp.port {port}: {error.strerror}") from error
        self._server.tls = self._tls
        threading.Thread(target=self._server.serve_forever, name="scp-accept", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections, let stores in progress end, close the rest."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        still_open = server.open.copy()
        for association in still_open:
            association.interrupt()
        deadline = time.monotonic() + STOP_S
        for association in still_open:
            association.join(max(0.0, deadline - time.monotonic()))

    def open_studies(self) -> set[str]:
        """Study Instance UIDs that open associations have carried: none of these studies is complete yet."""
        still_open = self._server.open.copy() if self._server is not None else set()
        return {uid for association in still_open for uid in association.studies.copy()}
