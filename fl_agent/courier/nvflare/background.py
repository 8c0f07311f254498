"""Processes that outlive the command that starts them, known by a file that holds their number."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STOP_S: Final = 10.0


@dataclass(frozen=True)
class Background:
    """One such process.

    Attributes
    ----------
    folder : Path
        Takes its log, ``NAME.log``, and its number, ``NAME.pid``.
    name : str
    arguments : tuple of str
        What the Python interpreter is started with.
    mark : str
        One of its arguments for as long as it runs, so that another program of the same number is not taken for it.
    """

    folder: Path
    name: str
    arguments: tuple[str, ...]
    mark: str

    @property
    def log(self) -> Path:
        """What it wrote to standard output and error."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """Its process number; None where it does not run."""
        try:
            pid = int((self.folder / f"{self.name}.pid").read_text())
            alive = self.mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if alive else None

    def start(self) -> None:
        """Start it unless it runs."""
        if self.pid is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        pid = os.posix_spawn(  # it outlives this process, which `subprocess` would warn of
            sys.executable,
            [sys.executable, *self.arguments],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        (self.folder / f"{self.name}.pid").write_text(str(pid))


def stop(processes: Collection[Background]) -> None:
    """Ask them to end, and end those that do not."""
    _signal(processes, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while any(one.pid is not None for one in processes):
        if time.monotonic() > deadline:
            _signal(processes, signal.SIGKILL)
        time.sleep(0.05)


def _signal(processes: Collection[Background], number: signal.Signals) -> None:
    for one in processes:
        if (pid := one.pid) is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself since
                os.kill(pid, number)
