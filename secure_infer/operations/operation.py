"""What an operator has of a party or dealer while it runs: reloads, figures, an audit trail, and a clean end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from pydantic import Field

from dicom_node.core import logs, loops, tls
from dicom_node.core.audit import Event, Outcome
from dicom_node.core.credentials import Credentials
from dicom_node.core.errors import VeilRayError
from dicom_node.core.settings import Port

from ..transport.server import Server
from .metrics import LOOPBACK, Metrics
from .reload import Reloadable, Reloader
from .trail import Trail

log = logs.get(__name__)
TRAIL: Final = "audit.sqlite3"
#: A peer that asks too fast is told so each time, and noted in the trail once in this many seconds.
HASTE_S: Final = 60.0
HASTY: Final = frozenset({"rate-limited", "quota-exhausted"})
#: How often `run_once` should look, seconds.
LOOK_EVERY_S: Final = 0.5


class Operated(Reloadable):
    """Settings that party and dealer share."""

    metrics_port: Port | None = Field(
        default=None, description="port on loopback for Prometheus; 0 takes a free one, and without any there is none"
    )


S = TypeVar("S", bound=Operated)


class Operation(Generic[S]):
    """The operator's side of one running service.

    Parameters
    ----------
    settings : Operated
        As they were read at the start.
    trail : Path
        File of the audit trail.
    actor : str
        The command, e.g. ``secure-infer party``.
    clock : callable
        Seconds since the epoch.

    Attributes
    ----------
    credentials : Credentials
        The service's, refreshed by `run_once`.
    metrics : Metrics
    """

    def __init__(self, settings: S, trail: Path, actor: str, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self.credentials = Credentials(settings.tls)
        self.metrics = Metrics(settings.names)
        self._trail = Trail(trail, actor, clock)
        self._lock = threading.Lock()
        self._noted: dict[str, float] = {}

    def request_ended(self, kind: str, peer: str, done: str | VeilRayError, *, bundle_id: str, model: str) -> None:
        """Count a request and note it in the trail.

        Parameters
        ----------
        kind : str
            What was asked, e.g. ``query``.
        peer : str
            Fingerprint of the certificate that asked.
        done : str or VeilRayError
            What was done, or why not.
        bundle_id, model : str
            Identifier in hexadecimal, and version or the hash of the card, as far as they became known.
        """
        failed = isinstance(done, VeilRayError)
        code = done.code if isinstance(done, VeilRayError) else done
        self.metrics.ended(peer, kind, code)
        if code in HASTY and not self._first(peer):
            return
        outcome = Outcome.MINOR_FAILURE if failed else Outcome.SUCCESS
        what = f"{kind}-{'ended' if failed else done}"
        about = {"fingerprint": peer, "bundle_id": bundle_id, "model": model, "code": code}
        self._trail.note(Event.QUERY, what, outcome, **about)

    def _first(self, peer: str) -> bool:
        now = self._clock()
        with self._lock:
            due = now - self._noted.get(peer, -HASTE_S) >= HASTE_S
            if due:
                self._noted[peer] = now
        return due

    def start(self, path: Path, server: Server, take_up: Callable[[S], None], **about: str | int) -> None:
        """Start a service and announce ``ready`` in the log; call it from the main thread.

        Parameters
        ----------
        path : Path
            The settings file, which `run_once` looks at.
        server : Server
            Not started yet.
        take_up : callable
            Puts the live settings of a changed file in force.
        about
            Further fields of that line.
        """
        self._hangup = loops.reload_on_signal()
        self._server = server

        def put_in_force(found: S) -> None:
            self.metrics.rename(found.names)
            take_up(found)

        self._reloader = Reloader(path, self._settings, self.credentials, put_in_force, self._note_reload)
        seq, head = self._trail.started()
        self._close_metrics = self._open_metrics()
        server.start()
        fingerprint = tls.fingerprint(self._settings.tls.certificate)
        log.info("ready", port=server.port, fingerprint=fingerprint, audit_seq=seq, audit_head=head, **about)

    def run_once(self) -> bool:
        """Take up what changed, at once after SIGHUP; false: there is never more to do now.

        Raises
        ------
        VeilRayError
            Connections are no longer accepted (``listener-ended``): a restart is always safe.
        """
        if not self._server.alive:
            raise VeilRayError("connections are no longer accepted", code="listener-ended")
        asked = self._hangup.is_set()
        self._hangup.clear()
        if self._reloader.run_once(asked=asked):
            for peer, code in self._server.sweep():
                log.warning("connection-ended", fingerprint=peer, code=code)
                self._trail.note(Event.SECURITY_ALERT, "connection-ended", fingerprint=peer, code=code)
        return False

    def stop(self) -> None:
        """End all connections, note the stop and close the trail."""
        self._server.stop()
        self._close_metrics()
        self._trail.close()
        log.info("stopped")

    def _open_metrics(self) -> Callable[[], None]:
        server = self._server
        self.metrics.watch("connections", "Open connections.", lambda: server.connections)
        if self._settings.metrics_port is None:
            return lambda: None
        port, close = self.metrics.serve(self._settings.metrics_port)
        log.info("metrics-ready", host=LOOPBACK, port=port)
        return close

    def _note_reload(self, what: str, code: str) -> None:
        self.metrics.reloaded(code or "done")
        outcome = Outcome.SERIOUS_FAILURE if code else Outcome.SUCCESS
        self._trail.note(Event.SECURITY_ALERT, what, outcome, code=code)
