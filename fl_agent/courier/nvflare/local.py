"""A whole consortium's relays on one machine, for trials and tests; a site uses systemd (`orthanc_config/systemd`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from dicom_node.core.errors import ConfigError, Unavailable

from .. import unix
from . import background, run
from .background import Background
from .wire import COORDINATOR

#: Folder beside the kits for what their processes write.
STATE: Final = "run"


def state(kits: Path, name: str) -> Path:
    """Folder that the relay of a kit writes to: its log is ``relay.log``."""
    return kits.absolute() / STATE / name


def socket(kits: Path, name: str) -> Path:
    """Where the agent of a hospital answers, or, for the coordinator, the NVFlare server."""
    return state(kits, name) / "courier.sock"


def names(kits: Path) -> list[str]:
    """Name the kits of a folder, the coordinator's first.

    Raises
    ------
    ConfigError
        There are none (``no-kit``).
    """
    found = {path.parent.name for path in kits.glob("*/startup")}
    if COORDINATOR not in found:
        raise ConfigError(f"{kits} holds no kits; make them by `fl-agent provision`", code="no-kit")
    return [COORDINATOR, *sorted(found - {COORDINATOR})]


def relay(kits: Path, name: str) -> Background:
    """Return the relay of a kit as a process."""
    folder = state(kits, name)
    arguments = ("-P", "-m", run.__name__, str(kits / name), str(folder), str(socket(kits, name)))
    return Background(folder, "relay", arguments, mark=str(folder))


def running(kits: Path) -> dict[str, int | None]:
    """Give each relay's process number, None where it does not run."""
    return {name: relay(kits, name).pid for name in names(kits)}


def start(kits: Path, timeout_s: float = 60.0) -> None:
    """Start the relays that do not run, and wait until the coordinator's answers.

    Raises
    ------
    Unavailable
        It does not in time (``relay-not-ready``).
    """
    for name in names(kits):
        relay(kits, name).start()
    deadline = time.monotonic() + timeout_s
    while not unix.served(socket(kits, COORDINATOR)):
        if time.monotonic() > deadline:
            log = relay(kits, COORDINATOR).log
            raise Unavailable(f"the coordinator's relay does not answer; look into {log}", code="relay-not-ready")
        time.sleep(0.1)


def stop(kits: Path) -> None:
    """Stop all relays; NVFlare's own end takes minutes and leaves nothing that we need, so they are ended."""
    background.stop([relay(kits, name) for name in names(kits)])
