"""A whole consortium's relays on one machine, for trials and tests; a site uses systemd (`orthanc_config/systemd`)."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from dicom_node.core.errors import ConfigError, Unavailable

from .. import unix
from . import run
from .wire import COORDINATOR

#: Folder beside the kits for what their processes write.
STATE: Final = "run"
STOP_S: Final = 10.0


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


def running(kits: Path) -> dict[str, int | None]:
    """Give each kit's process number, None where it does not run."""
    return {name: _pid(kits, name) for name in names(kits)}


def start(kits: Path, timeout_s: float = 60.0) -> None:
    """Start the relays that do not run, and wait until the coordinator's answers.

    Raises
    ------
    Unavailable
        It does not in time (``relay-not-ready``).
    """
    for name, pid in running(kits).items():
        if pid is None:
            _launch(kits, name)
    deadline = time.monotonic() + timeout_s
    while not unix.served(socket(kits, COORDINATOR)):
        if time.monotonic() > deadline:
            log = state(kits, COORDINATOR) / "relay.log"
            raise Unavailable(f"the coordinator's relay does not answer; look into {log}", code="relay-not-ready")
        time.sleep(0.1)


def stop(kits: Path) -> None:
    """Stop all relays; NVFlare's own end takes minutes and leaves nothing that we need, so they are ended."""
    pids = [pid for pid in running(kits).values() if pid is not None]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while any(pid is not None for pid in running(kits).values()):
        if time.monotonic() > deadline:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _launch(kits: Path, name: str) -> None:
    folder = state(kits, name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = (1, str(folder / "relay.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pid = os.posix_spawn(  # it outlives this process, which `subprocess` would warn of
        sys.executable,
        [sys.executable, "-P", "-m", run.__name__, str(kits / name), str(folder), str(socket(kits, name))],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, *log), (os.POSIX_SPAWN_DUP2, 1, 2)],
        setsid=True,
    )
    (folder / "relay.pid").write_text(str(pid))


def _pid(kits: Path, name: str) -> int | None:
    """Read a relay's process number, and check that it is not another program's by now."""
    folder = state(kits, name)
    try:
        pid = int((folder / "relay.pid").read_text())
        alive = str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if alive else None
