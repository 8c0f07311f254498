"""Starts the NVFlare process of a kit: no shell scripts, no job, files for its own user alone.

As a program, ``python -m fl_agent.courier.nvflare.run KIT STATE SOCKET`` becomes that process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from dicom_node.core.errors import ConfigError

from .wire import GROUP, SOCKET

#: Start-up files of a kit, and NVFlare's program for each.
PROGRAMS: Final = {
    "fed_server.json": "nvflare.private.fed.app.server.server_train",
    "fed_client.json": "nvflare.private.fed.app.client.client_train",
}


#: Pause between two signs of life of a hospital's relay, seconds. By these, a server that was started anew learns who
#: is there; NVFlare's own pause is ten.
HEARTBEAT_S: Final = 2


def command(kit: Path, state: Path) -> list[str]:
    """Return the command line of the NVFlare process of a kit.

    Raises
    ------
    ConfigError
        The folder is no kit (``no-kit``).
    """
    found = [file for file in PROGRAMS if (kit / "startup" / file).is_file()]
    if len(found) != 1:
        raise ConfigError(f"{kit} is no kit that `fl-agent provision` made", code="no-kit")
    name = _name(kit)
    settings = ["secure_train=true", "config_folder=config", "org=" + name.replace("-", "_")]
    settings.append(f"heart_beat_interval={HEARTBEAT_S}")
    # -P: modules come from the installation, never from the folder that the process may write to
    arguments = [sys.executable, "-P", "-u", "-m", PROGRAMS[found[0]], "-m", str(state), "-s", found[0]]
    return [*arguments, "--set", *settings, "uid=" + name]


def prepare(kit: Path, state: Path) -> None:
    """Copy keys and policies anew to where NVFlare wants them, beside what it writes; the kit itself stays as it is."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in ("startup", "local"):
        shutil.rmtree(state / folder, ignore_errors=True)
        shutil.copytree(kit / folder, state / folder)


def run(kit: Path, state: Path, socket: Path, group: str | None = None) -> None:
    """Become the NVFlare process of a kit.

    Parameters
    ----------
    state : Path
        Folder that it may write to; its own.
    socket : Path
        At a hospital the agent's socket; at the coordinator the one to serve.
    group : str, optional
        Whose members may ask there, besides this process's own user.
    """
    arguments = command(kit, state)
    os.umask(0o077)
    prepare(kit, state)
    environment = {**os.environ, SOCKET: str(socket.absolute()), **({GROUP: group} if group else {})}
    os.execve(arguments[0], arguments, environment)  # noqa: S606 - a fixed list


def _name(kit: Path) -> str:
    file = kit / "startup" / "fed_client.json"
    return str(json.loads(file.read_text())["client"]["fqsn"]) if file.is_file() else "server"


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
