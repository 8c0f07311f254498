"""The commands `fl-agent progress` and `fl-agent report`: a run's record in the terminal, and as an HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dicom_node.core.errors import ConfigError

from . import record
from .live import follow

RunFolder = Annotated[Path, typer.Argument(help="the coordinator's state_dir, for its newest run, or a run's folder")]


def progress(folder: RunFolder) -> None:
    """Show a training run live until it ends; Ctrl-C ends the show, not the run."""
    try:
        follow(folder, Console())
    except KeyboardInterrupt:
        raise typer.Exit from None


def report(
    folder: RunFolder, out: Annotated[Path, typer.Option(help="the HTML file to write")] = Path("run.html")
) -> None:
    """Write a training run's report as one HTML file: loss, figures, privacy spent, bytes, seconds, settings."""
    run = record.read(folder)
    try:
        from .page import render  # noqa: PLC0415 - matplotlib comes with the extra `consortium` alone
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the report's charts need {error.name}: install veilray[consortium]", code="not-installed"
        ) from error
    out.write_text(render(run), encoding="utf-8")
    Console().print(f"wrote {out}", highlight=False, soft_wrap=True)
