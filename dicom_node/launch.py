"""Starts VeilRay's services as child processes and waits until each says that it is ready.

The demonstration and the system tests use it; a site uses systemd (`orthanc_config/systemd`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .core.errors import Unavailable


def free_port() -> int:
    """Find a TCP port on loopback that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Service:
    """One child process whose standard error is a file of JSON log lines.

    Parameters
    ----------
    name : str
        For messages and for the log file's name.
    arguments : sequence of str
        The command line.
    folder : Path
        Where ``<name>.log`` is written; log lines of a restart are appended.
    environment : dict, optional
        Variables added to this process's own.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self._arguments = list(arguments)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._offset = 0

    @property
    def pid(self) -> int:
        """Process number of the running service."""
        if self._process is None:
            raise Unavailable(f"{self.name} was not started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def arm(self, failpoint: str | None) -> None:
        """Name the fail point (`core.failpoint`) at which the next start dies; None disarms."""
        self._environment.pop("VEILRAY_FAILPOINT", None)
        if failpoint is not None:
            self._environment["VEILRAY_FAILPOINT"] = failpoint

    def start(self) -> None:
        """Start the process without waiting for it."""
        self._offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # a terminal's Ctrl-C is for us alone
            )

    def wait_ready(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait for the service's log line ``ready`` and return its fields.

        Raises
        ------
        Unavailable
            The process ended or said nothing in time; the message quotes the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = not self.alive  # before the look: a line written just before the end must not be missed
            for line in self.lines():
                if line.get("event") == "ready":
                    return line
            if ended:
                break
            time.sleep(0.05)
        tail = self.log_path.read_text(errors="replace")[-1000:]
        raise Unavailable(f"{self.name} did not become ready; the end of {self.log_path}:\n{tail}")

    def lines(self) -> list[dict[str, Any]]:
        """Return the log lines since the last start; lines that are not JSON (a crash's last words) are left out."""
        with self.log_path.open("rb") as log:
            log.seek(self._offset)
            text = log.read().decode(errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def stop(self, timeout_s: float = 15.0) -> int:
        """Ask the process to end, kill it if it does not, and return its exit status."""
        if self._process is None:
            return 0
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self._process.wait())

    def kill(self) -> None:
        """End the process at once (SIGKILL)."""
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.wait()
