"""Small SQLite files of marks that must never be lost: a mark survives a power cut before its commit returns."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

#: Memory in which SQLite keeps pages of a file that grows all night and is asked for little more than its newest rows.
#: Left alone it would take 2,000 KiB in the course of the night, and save no measurable time.
CACHE_KIB: Final = 128


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
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # fsync at each commit
    connection.execute(f"PRAGMA cache_size = {-CACHE_KIB}")  # negative: KiB, not pages
    for statement in schema:
        connection.execute(statement)
    return connection
