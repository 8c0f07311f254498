"""A child process that is asked by lines of JSON: one request, one answer, in turn."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

#: What a child says once it can be asked.
READY = {"event": "ready"}


class Child:
    """A process at the other end of two pipes; its standard error is a file.

    Parameters
    ----------
    arguments : sequence of str
        Command line after the interpreter.
    log : Path
        Takes what it writes to standard error.
    environment : mapping
        Variables added to this process's own.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=os.environ | dict(environment or {}),
            )
        self._read = b""

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises
        ------
        RuntimeError
            The process ended, or did not answer in time; its last words are in the message.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the next line that is an object; the errors are those of `ask`."""
        deadline = time.monotonic() + timeout_s
        assert self._process.stdout is not None
        while True:
            line, found, rest = self._read.partition(b"\n")
            if found:
                self._read = rest
                if line.startswith(b"{"):  # libraries print what they please
                    return dict(json.loads(line))
                continue
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 1 << 16) if readable else b""
            if not data:
                reason = "ended" if readable else "gave no answer in time"
                raise RuntimeError(f"{self._log.stem} {reason}:\n{self.last_words()}")
            self._read += data

    def last_words(self) -> str:
        """Return the end of what the process wrote to standard error."""
        return self._log.read_text(errors="replace")[-2000:]

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Be such a child until the other end closes."""
    print(json.dumps(READY), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
