"""Programs as processes of their own that import nothing anew: a fork server (multiprocessing) has done so once."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from dicom_node.core import failpoint
from dicom_node.demo.stack import Stack
from dicom_node.launch import Service

#: Forks before any thread is there; the first start in a session waits for the imports.
CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.system.preloaded"])


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


class ForkedService(Service):
    """A service whose command line, ``python -m PACKAGE ...``, runs in a fork that has its imports already."""

    def start(self) -> None:
        """Start the process without waiting for it."""
        self.log_path.touch(mode=0o600)
        self._offset = self.log_path.stat().st_size
        python, option, *arguments = self._arguments
        assert (python, option) == (sys.executable, "-m")
        given = (arguments, self._environment, self.log_path)
        process = CONTEXT.Process(target=_run, args=given, daemon=True)
        process.start()
        self._process = _Child(process)


class _Child:
    """What `Service` asks of a `subprocess.Popen`, of a forked process."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process, self.pid, self.kill = process, process.pid, process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            # It may end between the look and the signal, as for subprocess.Popen: that is what was wanted.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float | None = None) -> int:
        self._process.join(timeout_s)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("a forked service", timeout_s or 0.0)
        return status


def forked(stack: Stack) -> Stack:
    """Have a stack that is yet to start fork its services."""
    for name, one in stack.services.items():
        stack.services[name] = ForkedService(name, one._arguments, one.log_path.parent)
    return stack


def _run(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    os.setsid()
    _write_to(log)
    os.environ.clear()
    os.environ.update(environment)
    importlib.reload(failpoint)
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _write_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)


def _become(program: Callable[[Path], int | None], argument: Path, log: Path, place: failpoint.Place | None) -> None:
    _write_to(log)
    os.environ.pop("VEILRAY_FAILPOINT", None)
    if place is not None:
        os.environ["VEILRAY_FAILPOINT"] = place
    importlib.reload(failpoint)  # as a program does that is started
    sys.exit(program(argument))
