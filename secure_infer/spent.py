"""Which bundles are spent: a small SQLite file in which a mark survives a power cut before `spend` returns.

A bundle used twice would reveal the difference of two images, so each side keeps its own marks and trusts nobody
else's. Marks are never removed: one takes about 150 bytes of the disk, and memory keeps a fixed number of pages. What a
peer may still ask stands in the same transaction, so that neither a crash nor a restart gives it more.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from dicom_node.core import markfile
from dicom_node.core.errors import ProtocolError, Unavailable

DAY_S, MINUTE_S = 86400.0, 60.0


@dataclass(frozen=True)
class Allowance:
    """How many bundles one certificate may use: each tells its holder something about the weights.

    Attributes
    ----------
    daily : int
        Within any 24 hours.
    per_minute : float
        Lasting rate, the speed at which a bucket of `burst` tokens fills again.
    burst : int
        At once, after a pause.
    """

    daily: int
    per_minute: float
    burst: int

    @property
    def interval_s(self) -> float:
        """Time in which one token comes back, seconds."""
        return MINUTE_S / self.per_minute


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
            self._connection = markfile.opened(
                path,
                "CREATE TABLE IF NOT EXISTS spent (bundle BLOB PRIMARY KEY, peer BLOB NOT NULL, at REAL NOT NULL)",
                "CREATE INDEX IF NOT EXISTS spent_by ON spent (peer, at)",
                # The state of a token bucket is one number: when it will be full again.
                "CREATE TABLE IF NOT EXISTS bucket (peer BLOB PRIMARY KEY, full_at REAL NOT NULL)",
            )
        except (OSError, sqlite3.Error) as error:
            raise _broken(error) from error

    def spend(self, bundle: bytes, peer: bytes, now: float, allowance: Allowance | None = None) -> None:
        """Mark a bundle as spent, durably.

        Parameters
        ----------
        bundle : bytes
        peer : bytes
            Fingerprint of the certificate with which it is used.
        now : float
            Seconds since the epoch.
        allowance : Allowance, optional
            What this peer may use; without any, as much as it likes.

        Raises
        ------
        ProtocolError
            It was spent before (``bundle-reused``).
        Unavailable
            The peer has used its day's share (``quota-exhausted``) or comes too fast (``rate-limited``), or the file
            cannot be written (``ledger``). Nothing is marked then.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    if allowance is not None:
                        self._require(allowance, peer, now)
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

    def _require(self, allowance: Allowance, peer: bytes, now: float) -> None:
        """Take a token from the peer's bucket, in the open transaction."""
        if self._used(peer, now) >= allowance.daily:
            raise Unavailable("this certificate's daily quota is used up", code="quota-exhausted")
        found = self._connection.execute("SELECT full_at FROM bucket WHERE peer = ?", (peer,)).fetchone()
        slack = 1e-6
        latest = now + allowance.burst * allowance.interval_s + slack
        full_at = found[0] if found and now < found[0] <= latest else now  # a clock set back must lock nobody out
        full_at += allowance.interval_s
        if full_at > latest:
            raise Unavailable("this certificate asks faster than agreed", code="rate-limited")
        self._connection.execute("INSERT OR REPLACE INTO bucket VALUES (?, ?)", (peer, full_at))

    def left(self, peer: bytes, now: float, allowance: Allowance) -> int:
        """Count the bundles that a peer may still use of its day's share.

        Raises
        ------
        Unavailable
            The file cannot be read (``ledger``).
        """
        with self._lock:
            try:
                return max(0, allowance.daily - self._used(peer, now))
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
