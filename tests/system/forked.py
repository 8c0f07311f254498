"""Programs as processes of their own that import nothing anew: a fork server (multiprocessing) has done so once."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from dicom_node.core import failpoint

#: Forks before any thread is there; the first start in a session waits for the imports.
CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fl_agent.coordinator.service", "tests.system.hospital_agent"])


class Forked:
    """One program, which can be killed and started as often as a test wants.

    Parameters
    ----------
    program : callable
        Of a module; it becomes the process, and gives its exit status.
    argument : Path
        What it is called with.
    log : Path
        Takes its standard output and error.
    """

    def __init__(self, program: Callable[[Path], int | None], argument: Path, log: Path) -> None:
        self._program, self._argument, self.log = program, argument, log
        self._process: BaseProcess | None = None

    def start(self, place: failpoint.Place | None = None) -> None:
        """Start it, to die at a fail point where one is named."""
        if self._process is not None:
            self.kill()
            self._process.join()
        given = (self._program, self._argument, self.log, place)
        self._process = CONTEXT.Process(target=_become, args=given, daemon=True)
        self._process.start()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def ended(self, timeout_s: float) -> int | None:
        """Wait for its end and return the exit status, negative for a signal; None where it goes on."""
        assert self._process is not None
        self._process.join(timeout_s)
        return self._process.exitcode

    def kill(self) -> None:
        """End it by SIGKILL, from any thread."""
        if self._process is not None:
            self._process.kill()


def _become(program: Callable[[Path], int | None], argument: Path, log: Path, place: failpoint.Place | None) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.pop("VEILRAY_FAILPOINT", None)
    if place is not None:
        os.environ["VEILRAY_FAILPOINT"] = place
    importlib.reload(failpoint)  # as a program does that is started
    sys.exit(program(argument))
