"""Which rounds a site has entered: a small SQLite file in which an entry survives a power cut before `enter` returns.

Secrets of a round live in memory alone, so a crash drops the round; this file makes sure that it is not entered again,
under the same or other terms. Within a run only larger numbers are accepted. Never restore it from a backup.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from dicom_node.core import markfile
from dicom_node.core.errors import ProtocolError, Unavailable


class RoundLedger:
    """The rounds of one site; any number of processes may share the file.

    Parameters
    ----------
    path : Path
        The SQLite file; its folder is made.

    Raises
    ------
    Unavailable
        The file cannot be opened or written (``round-ledger``); no round may be entered then.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._connection = markfile.opened(
                path, "CREATE TABLE IF NOT EXISTS entered (run BLOB PRIMARY KEY, round INTEGER NOT NULL) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise _broken(error) from error

    def enter(self, run: bytes, number: int) -> None:
        """Mark a round as entered, durably.

        Parameters
        ----------
        run : bytes
        number : int
            Of the round.

        Raises
        ------
        ProtocolError
            This round or a later one of the run was entered before (``round-reused``).
        Unavailable
            The file cannot be written (``round-ledger``).
        """
        with self._lock:
            try:
                changed = self._connection.execute(
                    "INSERT INTO entered VALUES (?, ?) "
                    "ON CONFLICT (run) DO UPDATE SET round = excluded.round WHERE excluded.round > round",
                    (run, number),
                ).rowcount
            except sqlite3.Error as error:
                raise _broken(error) from error
        if changed != 1:
            raise ProtocolError(
                "the coordinator opened a round that is over; it must take a new number after a fault",
                code="round-reused",
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"the ledger of rounds cannot be used: {type(error).__name__}", code="round-ledger")
