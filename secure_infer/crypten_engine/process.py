"""A CrypTen process as its service sees it: started, asked, and ended when it does not answer."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from dicom_node.core.errors import ConfigError, IntegrityError

from ..program import Program
from ..protocol.ring import Words
from .pipe import Kind, Pipe

#: The child imports torch and CrypTen and passes its self-test before it answers, seconds.
START_S = 180.0


def require_installed() -> None:
    """Check that CrypTen is there; ConfigError (``engine-not-installed``) says how to get it."""
    if importlib.util.find_spec("crypten") is None:
        raise ConfigError(
            "the engine 'crypten' is not installed here: pip install 'veilray[crypten]'", code="engine-not-installed"
        )


class CryptenProcess:
    """A child process; used by one thread at a time.

    Parameters
    ----------
    timeout_s : float
        Longest wait for any one answer, seconds.

    Raises
    ------
    ConfigError
        CrypTen is not installed.
    IntegrityError
        Its self-test failed (``self-test``): it must not compute.
    """

    def __init__(self, timeout_s: float) -> None:
        require_installed()
        ours, theirs = socket.socketpair()
        # Its services' standard error is their log, where CrypTen's warnings about other libraries do not belong.
        command = [sys.executable, "-W", "ignore", "-m", "secure_infer.crypten_engine.child", str(theirs.fileno())]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with theirs:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment, start_new_session=True
            )
        self.pipe = Pipe(ours, timeout_s)
        self.model: bytes = b""
        try:
            kind, _ = self.pipe.receive(START_S)
            if kind is not Kind.HELLO:
                raise IntegrityError(
                    "the self-test of CrypTen failed: this installation must not compute", code="self-test"
                )
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The child's process number."""
        return self._child.pid

    def load(self, model: bytes, program: Program, rank: int, tensors: Sequence[Words] = ()) -> None:
        """Tell the child its program and, at party 1, weights and biases by layer; only what it does not hold yet."""
        if self.model != model:
            head = json.dumps({"rank": rank, "program": program.model_dump(mode="json")}).encode()
            body = b"".join(one.view(f"i{one.itemsize}").astype("<i8").tobytes() for one in tensors)  # keeps the sign
            self.pipe.send(Kind.MODEL, len(head).to_bytes(8, "big") + head + body)
            self.model = model

    def close(self) -> None:
        """End the child: the one way out of a query that did not come to its end."""
        self.pipe.close()
        self._child.kill()
        self._child.wait()
