"""Which bundles are spent: a small SQLite file in which a mark survives a power cut before `spend` returns.

A bundle used twice would reveal the difference of two images, so each side keeps its own marks and trusts nobody
else's. Marks are never removed: one takes about 100 bytes.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from dicom_node.core.errors import ProtocolError, Unavailable

DAY_S = 86400.0


class SpentLedger:
    """The marks of one side; any number of processes may share the file.

    Parameters
    ----------
    path : Path
        The SQLite file; its folder is made.

    Raises
    ------
    Unavailable
        The file cannot be opened or written (``ledger``); nothing may be computed then.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")  # fsync of the log at every commit
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS spent (bundle BLOB PRIMARY KEY, peer BLOB NOT NULL, at REAL NOT NULL)"
            )
            self._connection.execute("CREATE INDEX IF NOT EXISTS spent_by ON spent (peer, at)")
        except (OSError, sqlite3.Error) as error:
            raise _broken(error) from error

    def spend(self, bundle: bytes, peer: bytes, now: float, quota: int | None = None) -> None:
        """Mark a bundle as spent, durably.

        Parameters
        ----------
        bundle : bytes
        peer : bytes
            Fingerprint of the certificate with which it is used.
        now : float
            Seconds since the epoch.
        quota : int, optional
            Bundles that this peer may use within any 24 hours.

        Raises
        ------
        ProtocolError
            It was spent before (``bundle-reused``).
        Unavailable
            The quota is used up (``quota-exhausted``) or the file cannot be written (``ledger``).
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    if quota is not None and self._used(peer, now) >= quota:
                        raise Unavailable("this certificate's daily quota is used up", code="quota-exhausted")
                    self._connection.execute("INSERT INTO spent VALUES (?, ?, ?)", (bundle, peer, now))
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.IntegrityError as error:
                raise ProtocolError("this bundle was used before", code="bundle-reused") from error
            except sqlite3.Error as error:
                raise _broken(error) from error

    def _used(self, peer: bytes, now: float) -> int:
        within = "SELECT count(*) FROM spent WHERE peer = ? AND at > ?"
        return int(self._connection.execute(within, (peer, now - DAY_S)).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"the ledger of spent bundles cannot be used: {type(error).__name__}", code="ledger")
