"""The commands around the NVFlare courier: `provision` and `relay`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dicom_node.core import settings
from dicom_node.core.errors import ConfigError

from . import run
from .consortium import ConsortiumSettings


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
