"""The commands `fl-agent run` and `fl-agent identity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.core import cli
from secure_infer.models import public_hex, signing_key


def run(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Take part in training with other hospitals, within this site's rules and budget, until stopped."""
    from .service import serve  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch

    serve(config)


def identity(
    file: Annotated[Path, typer.Option(help="Ed25519 key (PEM); made where absent.")],
) -> None:
    """Print the public key by which the others know a hospital, or the coordinator; tell it them on a trusted way."""
    typer.echo(public_hex(signing_key(file)))
