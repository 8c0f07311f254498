"""The commands `fl-agent consortium ...`: a whole consortium on this machine, for trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.core import cli, logs

from ..courier.nvflare import local
from ..courier.nvflare.courier import NVFlareCourier
from ..courier.nvflare.wire import COORDINATOR

Kits = Annotated[Path, typer.Option(help="Folder that `fl-agent provision` made.", exists=True, file_okay=False)]
app = cli.new_app("A whole consortium on this machine, for trials: furnish it, start, stop and look at it.")
out = Console()


@app.command()
def furnish(
    kits: Kits,
    patients: Annotated[int, typer.Option(help="So many at each hospital.", min=6, max=2000)] = 12,
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds kermany224, for their images; else they are drawn.")
    ] = None,
) -> None:
    """Write each owner's settings, keys told to the others, and give the hospitals labelled patients who agreed."""
    from . import furnish as room  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch
    from . import patients as people  # noqa: PLC0415

    logs.configure("fl-agent consortium", "error")
    hospitals = len(local.names(kits)) - 1
    theirs = people.public(data / "kermany224", hospitals, patients) if data else people.drawn(hospitals, patients)
    for file in room.furnish(kits, theirs, patients):
        out.print(f"wrote {file}", soft_wrap=True, highlight=False)


@app.command()
def start(kits: Kits) -> None:
    """Start the relays of all kits and the agents of furnished hospitals, and wait until they can be reached."""
    from . import processes  # noqa: PLC0415

    logs.configure("fl-agent consortium", "error")
    processes.start(kits)
    status(kits)


@app.command()
def stop(kits: Kits) -> None:
    """Stop all that `start` has started."""
    from . import processes  # noqa: PLC0415

    processes.stop(kits)
    status(kits)


@app.command()
def status(kits: Kits) -> None:
    """Say which relays and agents run, and which hospitals' agents the coordinator reaches."""
    from . import processes  # noqa: PLC0415

    logs.configure("fl-agent consortium", "error")
    relays, agents = local.running(kits), processes.agents(kits)
    up = relays[COORDINATOR] is not None
    reached = NVFlareCourier(local.socket(kits, COORDINATOR)).connected() if up else frozenset()
    table = Table("", "relay", "agent", "agent is", title="Consortium on this machine")
    for name, pid in relays.items():
        agent = _process(agents[name].pid) if name in agents else ""
        found = "" if name == COORDINATOR else "reached" if name in reached else "away"
        table.add_row(name, _process(pid), agent, found)
    out.print(table)


def _process(pid: int | None) -> str:
    return "stopped" if pid is None else f"process {pid}"
