"""The command `fl-agent simulate`: a whole federation on this machine, in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.core import logs
from dicom_node.core.bars import bars


def simulate(
    sites: Annotated[int, typer.Option(help="Hospitals, of uneven sizes.", min=3, max=100)] = 3,
    secagg: Annotated[
        bool, typer.Option("--secagg/--no-secagg", help="Real frames through agents and coordinator, or bare sums.")
    ] = True,
    dp: Annotated[bool, typer.Option("--dp", help="Differential privacy; there is no run without.")] = True,
    epsilon: Annotated[float, typer.Option(help="Budget of one patient.", min=0.01)] = 3.0,
    delta: Annotated[float, typer.Option(help="Delta; below 1 / patients.", min=1e-12, max=1e-3)] = 1e-4,
    mode: Annotated[
        Literal["distributed", "site"], typer.Option(help="Who adds the noise: each site a share, or all of it.")
    ] = "distributed",
    honest: Annotated[int | None, typer.Option(help="Sites that epsilon counts on, in mode distributed.")] = None,
    rounds: Annotated[int, typer.Option(help="Secure sums of the descent.", min=1)] = 120,
    local_steps: Annotated[int, typer.Option(help="Steps at the site for each sum, in mode site.", min=1)] = 1,
    data: Annotated[Path | None, typer.Option(help="Folder that holds kermany224; else features are drawn.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for the trunk's features: patient data.")] = Path("feature-cache"),
    seed_for_split: Annotated[int, typer.Option(help="Divides the patients; no secret.")] = 2018,
    folder: Annotated[Path | None, typer.Option(help="Keeps everybody's state, and the record of the run.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Train with several hospitals on this machine: agents, ledgers, coordinator and frames are the real ones."""
    from ..learning.propose import Budget  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch
    from .run import Wanted, run  # noqa: PLC0415

    if not dp:
        raise typer.BadParameter("no run goes without differential privacy")
    logs.configure("fl-agent simulate", "error")
    console = Console()
    with bars(console) as progress:
        budget = Budget(epsilon, delta, mode, honest)
        wanted = Wanted(sites, secagg, budget, rounds, local_steps, data, cache, seed_for_split, folder)
        figures = run(wanted, progress)
    console.print(_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title=f"{figures['data']}, {len(figures['patients'])} sites, noise: {figures['mode']}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("epsilon", f"{figures['epsilon']:.3f}")
    table.add_row("epsilon if all others collude", f"{figures['epsilon_alone']:.3f}")
    table.add_row("delta", f"{figures['delta']:g}")
    for name, value in figures["validation"].items():
        table.add_row(f"validation: {name}", f"{value:.3f}")
    if "by_site" in figures:
        table.add_row("most bytes from a site in a round", f"{figures['bytes_up']:,}")
        table.add_row("most bytes to a site in a round", f"{figures['bytes_down']:,}")
        table.add_row("mean seconds per round", f"{figures['seconds_per_round']:.2f}")
    table.add_row("seconds, without features", f"{figures['seconds']:.1f}")
    return table
