"""The commands around the NVFlare courier: `provision`, `relay` and `consortium`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.core import cli, settings
from dicom_node.core.errors import ConfigError

from . import local, run
from .consortium import ConsortiumSettings
from .courier import NVFlareCourier
from .wire import COORDINATOR

Kits = Annotated[Path, typer.Option(help="Folder that `fl-agent provision` made.", exists=True, file_okay=False)]
consortium = cli.new_app("Start, stop and look at the relays of a whole consortium on this machine, for trials.")


def provision(
    config: Annotated[Path, typer.Option(help="Who takes part: consortium.toml.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Takes a start-up kit for the coordinator and for each hospital.")],
) -> None:
    """Make the start-up kits of a consortium that do not exist yet."""
    try:
        kits = importlib.import_module(".provision", __package__)
    except ModuleNotFoundError as error:
        raise ConfigError("NVFlare is not installed: pip install 'veilray[consortium]'", code="no-nvflare") from error
    console = Console()
    for name in kits.provision(settings.read(config, ConsortiumSettings), out):
        console.print(f"made {out / name}", soft_wrap=True, highlight=False)
    console.print(
        f"{out / 'authority'} signs kits: keep it offline. Hand each kit over on a trusted way, and delete it."
    )


def relay(
    kit: Annotated[Path, typer.Option(help="This site's start-up kit.", exists=True, file_okay=False)],
    state: Annotated[Path, typer.Option(help="Folder that the relay may write to; its own.")],
    socket: Annotated[
        Path, typer.Option(help="At a hospital the agent's socket; at the coordinator the one to serve.")
    ],
    group: Annotated[
        str | None, typer.Option(help="Group whose members may ask at the coordinator's socket, besides our own user.")
    ] = None,
) -> None:
    """Carry frames between coordinator and hospitals, without a look at data, until stopped."""
    run.run(kit, state, socket, group)


@consortium.command()
def start(kits: Kits) -> None:
    """Start the relays of all kits and wait until the coordinator reaches its server."""
    local.start(kits)
    status(kits)


@consortium.command()
def stop(kits: Kits) -> None:
    """Stop the relays of all kits."""
    local.stop(kits)
    status(kits)


@consortium.command()
def status(kits: Kits) -> None:
    """Say which relays run, and which hospitals' agents the coordinator reaches."""
    running = local.running(kits)
    reached = NVFlareCourier(local.socket(kits, COORDINATOR)).connected() if running[COORDINATOR] else frozenset()
    table = Table("relay", "process", "agent", title="Consortium on this machine")
    for name, pid in running.items():
        agent = "" if name == COORDINATOR else "answers" if name in reached else "away"
        table.add_row(name, "stopped" if pid is None else f"{pid}", agent)
    Console().print(table)
