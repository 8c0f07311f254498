"""The command `fl-agent coordinator`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def coordinator(
    config: Annotated[Path, typer.Option("--config", "-c", help="the coordinator's settings", exists=True)],
) -> None:
    """Run the training that the settings describe, or go on with it, until the model is signed and the sites know."""
    from .service import serve  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch

    status = serve(config)
    if status:
        raise typer.Exit(status)
