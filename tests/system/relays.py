"""A consortium's NVFlare processes on this machine, whose agents are functions of this process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from dicom_node.launch import free_port
from fl_agent.courier import unix
from fl_agent.courier.courier import Handler
from fl_agent.courier.nvflare import local
from fl_agent.courier.nvflare.consortium import ConsortiumSettings
from fl_agent.courier.nvflare.courier import NVFlareCourier
from fl_agent.courier.nvflare.provision import provision
from fl_agent.courier.nvflare.wire import COORDINATOR


class Relays:
    """Provisions, starts and, as a context, stops them.

    Parameters
    ----------
    kits : Path
        A folder whose path is short, for the sockets below it.
    handlers : dict
        Each hospital's agent; may be changed at any time.
    others : tuple of str
        Hospitals without an agent.
    alter : callable
        Changes kits before they are started.
    """

    def __init__(
        self,
        kits: Path,
        handlers: dict[str, Handler],
        others: tuple[str, ...] = (),
        alter: Callable[[Path], None] = lambda kits: None,
    ) -> None:
        self.kits, self.handlers = kits, handlers
        self.names = frozenset(handlers)
        provision(
            ConsortiumSettings(name="lungs", host="localhost", port=free_port(), hospitals=(*handlers, *others)), kits
        )
        alter(kits)
        local.start(kits)
        self.agents = {name: self.agent(name) for name in handlers}
        self.courier = NVFlareCourier(local.socket(kits, COORDINATOR))

    def agent(self, name: str) -> unix.Server:
        """Serve a hospital's agent."""

        def handle(frame: bytes) -> bytes:
            return self.handlers[name](frame)  # whoever is the handler by then

        return unix.serve(local.socket(self.kits, name), handle)

    def exchange(self, frame: bytes, timeout_s: float = 30.0) -> dict[str, bytes]:
        """Bring all agents the same frame."""
        return dict(self.courier.exchange(dict.fromkeys(self.names, frame), timeout_s))

    def wait_for_all(self) -> None:
        self.wait_for(self.names)

    def wait_for(self, names: frozenset[str]) -> None:
        """Wait until these agents, and no others, can be reached."""
        deadline = time.monotonic() + 60
        while (there := self.courier.connected()) != names:
            assert time.monotonic() < deadline, f"only {sorted(there)} can be reached"
            time.sleep(0.1)

    def pid(self, name: str) -> int:
        pid = local.running(self.kits)[name]
        assert pid is not None
        return pid

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)
        while local.running(self.kits)[name] is not None:
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        local.stop(self.kits)
        for agent in self.agents.values():
            agent.close()
