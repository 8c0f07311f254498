"""Small SQLite files of marks that must never be lost: a mark survives a power cut before its commit returns."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def opened(path: Path, *schema: str) -> sqlite3.Connection:
    """Open a file of marks; its folder and tables are made.

    Parameters
    ----------
    path : Path
        Any number of processes may share it. Never restore it from a backup: marks made since would be gone.
    schema : str
        Statements that make what is missing.

    Returns
    -------
    sqlite3.Connection
        Without transactions of its own; a lock of the caller's lets threads share it.

    Raises
    ------
    OSError, sqlite3.Error
        The file cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", *schema):  # FULL: fsync at each commit
        connection.execute(statement)
    return connection
