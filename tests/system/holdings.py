"""What a process holds: memory (proc(5)), Python's blocks, the C heap (mallinfo(3)), SQLite's memory, file handles.

Resident memory tells that a process grew, the counts tell what did: an identifier that is kept for each query is a
block or two for each, whereas resident memory moves by pages. A role of a test answers SIGUSR1 with its holdings.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import signal
import sqlite3  # noqa: F401  # loads the library that is asked
import sys
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

#: Fields of `mallinfo2`, and those of them that are in use: small blocks, and those with a mapping of their own.
MALLINFO: Final = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)
IN_USE: Final = ("uordblks", "hblkhd")
#: Longer than a busy role needs.
PATIENCE_S: Final = 20.0


@dataclass(frozen=True)
class Holdings:
    """What one process holds at a moment.

    Attributes
    ----------
    rss_kib : float
        Resident memory.
    heap_kib : float
        What the C library has handed out: arrays, Python's arenas, SQLite's pages; 0 where it cannot tell.
    sqlite_kib : float
        What SQLite uses of it; 0 where SQLite is built into Python.
    objects : int
        Blocks of at most 512 bytes that Python has handed out, after a collection of garbage; without dead weak
        references: a connection of `sqlite3` drops those to its old cursors once it has made 200 more.
    handles : int
        Open file descriptors.
    """

    rss_kib: float
    heap_kib: float
    sqlite_kib: float
    objects: int
    handles: int


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


@functools.cache
def _mallinfo() -> Any:
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _Mallinfo
    return function


@functools.cache
def _sqlite_used() -> Any:
    maps = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    loaded = next((path for path in maps if "/libsqlite3.so" in path), None)
    if loaded is None:
        return None
    function = ctypes.CDLL(loaded).sqlite3_memory_used
    function.restype = ctypes.c_int64
    return function


def take() -> Holdings:
    """Look at this process."""
    gc.collect()
    objects = sys.getallocatedblocks() - sum(type(one) is weakref.ref and one() is None for one in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    mallinfo, sqlite_used = _mallinfo(), _sqlite_used()
    found = mallinfo() if mallinfo else None
    return Holdings(
        rss_kib=pages * os.sysconf("SC_PAGE_SIZE") / 1024,
        heap_kib=sum(getattr(found, name) for name in IN_USE) / 1024 if found else 0.0,
        sqlite_kib=sqlite_used() / 1024 if sqlite_used else 0.0,
        objects=objects,
        handles=len(list(Path("/proc/self/fd").iterdir())),
    )


def tell_on_signal(file: Path) -> None:
    """Write this process's holdings to a file at every SIGUSR1; call it from the main thread."""

    def tell(_: int, __: FrameType | None) -> None:
        written = file.with_suffix(".new")
        written.write_text(json.dumps(asdict(take())))
        written.replace(file)

    signal.signal(signal.SIGUSR1, tell)


def ask(pid: int, file: Path) -> Holdings:
    """Look at a process that has called `tell_on_signal` with this file."""
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert time.monotonic() < deadline, f"process {pid} did not tell what it holds"
        time.sleep(0.005)
    return Holdings(**json.loads(file.read_text()))
