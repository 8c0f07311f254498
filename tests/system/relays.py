"""A consortium's NVFlare processes on this machine, whose agents are functions of this process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
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
    """Provisions and starts them; as a context, stops them and the agents.

    Parameters
    ----------
    kits : Path
        A folder whose path is short, for the sockets below it.
    hospitals : sequence of str
    alter : callable
        Changes kits before they are started.

    Attributes
    ----------
    handlers : dict
        Each hospital's agent, which `serve` has put at its socket; may be changed at any time.
    """

    def __init__(self, kits: Path, hospitals: Sequence[str], alter: Callable[[Path], None] = lambda kits: None) -> None:
        self.kits = kits
        self.handlers: dict[str, Handler] = {}
        self.agents: dict[str, unix.Server] = {}
        provision(
            ConsortiumSettings(name="lungs", host="localhost", port=free_port(), hospitals=tuple(hospitals)), kits
        )
        alter(kits)
        local.start(kits)
        self.courier = NVFlareCourier(local.socket(kits, COORDINATOR))

    @property
    def names(self) -> frozenset[str]:
        """The hospitals with an agent here."""
        return frozenset(self.handlers)

    def serve(self, handlers: dict[str, Handler]) -> None:
        """Put agents at their sockets and wait until the coordinator reaches them."""
        self.handlers = handlers
        self.agents = {name: self.agent(name) for name in handlers}
        self.wait_for(self.names)

    def silence(self) -> None:
        """Take all agents away."""
        for agent in self.agents.values():
            agent.close()
        self.agents, self.handlers = {}, {}

    def agent(self, name: str) -> unix.Server:
        """Serve a hospital's agent."""

        def handle(frame: bytes) -> bytes:
            return self.handlers[name](frame)  # whoever is the handler by then

        return unix.serve(local.socket(self.kits, name), handle)

    def exchange(self, frame: bytes, timeout_s: float = 30.0) -> dict[str, bytes]:
        """Bring all agents the same frame."""
        return dict(self.courier.exchange(dict.fromkeys(self.names, frame), timeout_s))

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
        self.silence()
