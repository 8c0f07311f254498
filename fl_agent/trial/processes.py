"""The hospitals' agents beside the relays of a trial: started, stopped, and waited for."""

from __future__ import annotations

import time
from pathlib import Path

from dicom_node.core.errors import Unavailable

from ..courier.nvflare import background, local
from ..courier.nvflare.background import Background
from ..courier.nvflare.courier import NVFlareCourier
from ..courier.nvflare.wire import COORDINATOR
from .owners import config, folder


def agents(kits: Path) -> dict[str, Background]:
    """Return the agents of the hospitals that were furnished."""
    return {name: _agent(kits, name) for name in local.names(kits)[1:] if config(kits, name).exists()}


def start(kits: Path, timeout_s: float = 120.0) -> None:
    """Start relays and agents that do not run, and wait until the coordinator reaches every agent.

    Raises
    ------
    Unavailable
        It does not in time (``agents-not-ready``), or see `local.start`.
    """
    started = agents(kits)
    for agent in started.values():
        agent.start()
    local.start(kits)
    courier = NVFlareCourier(local.socket(kits, COORDINATOR))
    deadline = time.monotonic() + timeout_s
    while missing := [name for name in started if name not in courier.connected()]:
        ended = [name for name in missing if started[name].pid is None]
        if ended or time.monotonic() > deadline:
            log = started[(ended or missing)[0]].log
            raise Unavailable(
                f"{', '.join(ended or missing)} cannot be reached; look into {log}", code="agents-not-ready"
            )
        time.sleep(0.2)


def stop(kits: Path) -> None:
    """Stop agents and relays."""
    background.stop(list(agents(kits).values()))
    local.stop(kits)


def _agent(kits: Path, name: str) -> Background:
    file = str(config(kits, name))
    arguments = ("-P", "-m", "fl_agent", "run", "--config", file)
    return Background(folder(kits, name), "agent", arguments, mark=file)
