"""The audit trail of a party or dealer: the site's own hash chain (DICOM PS3.15 A.5), in a file of this service.

A query's row names its bundle and model: the hospital's trail names the same bundle in the row of the study, so both
logs can be laid side by side. Neither holds a patient's data.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dicom_node.core import audit, logs, markfile
from dicom_node.core.audit import Event, Outcome, Record
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError

log = logs.get(__name__)


class Trail:
    """Appends to one service's trail.

    Parameters
    ----------
    path : Path
        The SQLite file; its folder is made.
    actor : str
        The command that writes, e.g. ``secure-infer party``.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    Unavailable
        The file cannot be opened or written; so do the methods.
    """

    def __init__(self, path: Path, actor: str, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._actor = actor
        self._clock = clock
        self._lock = threading.Lock()  # SQLite has one writer: threads that wait here hold no connection
        self._database = Database(f"sqlite:///{path}", cache_kib=markfile.CACHE_KIB)
        self._database.migrate()

    def started(self) -> tuple[int, str]:
        """Note the start; return number and hash of its row, which the log keeps elsewhere."""
        self.note(Event.APPLICATION_ACTIVITY, "started")
        with self._database.read() as connection:
            return audit.head(connection)

    def note(self, event: Event, what: str, outcome: Outcome = Outcome.SUCCESS, **detail: str | int | float) -> None:
        """Append a row, durably.

        Parameters
        ----------
        event : Event
        what : str
            Which of its kind, in kebab case.
        outcome : Outcome
        detail
            Fingerprints, identifiers of bundles, model versions, codes, counts.
        """
        record = Record(event, what, "E", self._actor, outcome, detail=detail)
        with self._lock, self._database.write() as connection:
            audit.append(connection, record, self._clock())

    def close(self) -> None:
        """Note the stop and close the file."""
        self.note(Event.APPLICATION_ACTIVITY, "stopped")
        self._database.close()


def verify(path: Path) -> tuple[int, str]:
    """Check a whole trail; see `dicom_node.core.audit.verify`.

    Raises
    ------
    ConfigError
        There is no such file (``no-trail``): opening would make one.
    IntegrityError
        It was altered.
    """
    if not path.is_file():
        raise ConfigError(f"there is no audit trail {path}", code="no-trail")
    database = Database(f"sqlite:///{path}")
    try:
        with database.read() as connection:
            return audit.verify(connection)
    finally:
        database.close()
