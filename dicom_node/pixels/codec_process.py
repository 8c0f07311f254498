"""The child process that decompresses frames: it may crash or hang, this process may not (PS3.5 Annex A.4)."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from ..core.errors import Refused, Unavailable
from .image_pixel import ImagePixel

TIMEOUT_S = 30.0
START_TIMEOUT_S = 60.0
# How native code dies of its input; any other death is the node's own trouble and may be retried.
CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}

Words = NDArray[np.uint8] | NDArray[np.uint16]


class CodecProcess:
    """A child that runs `decompress`, started when first needed and again after it died.

    Parameters
    ----------
    timeout_s : float
        Longest time for one frame, seconds; then the child is killed.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decompress(self, frame: bytes, syntax: uid.UID, pixel: ImagePixel) -> Words:
        """Decode one frame in the child.

        Returns
        -------
        ndarray of uint8 or uint16, shape as decoded

        Raises
        ------
        Refused
            The frame cannot be decoded, or crashed or hung the codec.
        Unavailable
            The child could not be started or was ended from outside.
        """
        broken = Refused(
            f"the compressed image ({syntax.name}) is truncated or broken: the sender must send it again",
            code="broken-pixel-data",
        )
        request = {"syntax": syntax, "pixel": asdict(pixel), "length": len(frame)}
        with self._lock:
            process = self._process or self._start()
            self._process = process
            try:
                answer, data = _exchange(process, json.dumps(request).encode() + b"\n" + frame, self._timeout_s)
            except _Hung:
                self._end()
                raise broken from None
            except (OSError, ValueError):  # a broken pipe, or no whole answer: the child is dead
                status = self._end()
                if -status in CRASHES:
                    raise broken from None
                raise Unavailable("the image decoder was ended from outside", code="decoder") from None
        if "refused" in answer:
            raise Refused(str(answer["refused"]), code=str(answer["code"]))
        if "failed" in answer:
            raise broken
        flat: Words = np.frombuffer(data, np.uint8) if pixel.allocated == 8 else np.frombuffer(data, "<u2")
        return flat.reshape(answer["rows"], answer["columns"])

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            if self._process is not None:
                self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parent.parent)
        # One thread for BLAS, whose pools would take up the child's address space.
        environment = {**os.environ, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "dicom_node.pixels.decompress"]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            self._process = process
            _exchange(process, b"", START_TIMEOUT_S)
        except (OSError, ValueError, _Hung):
            if self._process is not None:
                self._end()
            raise Unavailable("the image decoder does not start: try `dicom-node check`", code="decoder") from None
        return process

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        requests, answers = _pipes(process)
        answers.close()
        with contextlib.suppress(BrokenPipeError):  # what a dead child did not read is lost with it
            requests.close()
        try:
            return process.wait(timeout=1)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


class _Hung(Exception):
    """The child was killed because its time was up."""


def _exchange(process: subprocess.Popen[bytes], request: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
    """Send a request and wait for its answer; ValueError where the answer breaks off."""
    requests, answers = _pipes(process)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    watchdog = threading.Timer(timeout_s, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        requests.write(request)
        requests.flush()
        answer = json.loads(answers.readline())
        data = answers.read(answer["length"])
        if len(data) != answer["length"]:
            raise ValueError("the answer breaks off")
        return answer, data
    except (OSError, ValueError):
        if late.is_set():
            raise _Hung from None
        raise
    finally:
        watchdog.cancel()


SHARED = CodecProcess()
atexit.register(SHARED.close)
