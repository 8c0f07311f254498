"""What the three command lines share: the settings option, and errors as one sentence with their exit status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .errors import VeilRayError

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="VEILRAY_CONFIG", help="the site's settings", show_default=True)
]
DEFAULT_CONFIG = Path("/etc/veilray/site.toml")


def new_app(text: str) -> typer.Typer:
    """Make a command line whose faults are sentences, not stack traces."""
    return typer.Typer(help=text, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def run(app: typer.Typer) -> None:
    """Run a command line; a `VeilRayError` ends it with its sentence on standard error and its exit status."""
    try:
        app()
    except VeilRayError as error:
        Console(stderr=True).print(f"[bold red]{error.code}[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_status)
