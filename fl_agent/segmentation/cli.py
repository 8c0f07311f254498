"""The command `fl-agent train-segmentation`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from secure_infer.models import public_hex, signing_key

from ..order import refuse_mixup


def train_segmentation(
    out: Annotated[Path, typer.Option(help="Folder that receives the new version.")],
    version: Annotated[str, typer.Option(help="Version of the new model; never used again.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of images, masks and patients.csv; else phantoms are drawn.")
    ] = None,
    phantoms: Annotated[int, typer.Option(help="Phantoms to draw.", min=10, max=100_000)] = 2000,
    side: Annotated[int, typer.Option(help="Rows and columns; a multiple of 8.", min=32, max=512)] = 128,
    epsilon: Annotated[float, typer.Option(help="Privacy budget of one patient.", min=0.01)] = 3.0,
    delta: Annotated[float, typer.Option(help="Delta; below 1 / patients.", min=1e-12, max=0.5)] = 1e-4,
    steps: Annotated[int, typer.Option(help="Private steps.", min=1)] = 200,
    seed_for_split: Annotated[int, typer.Option(help="Chooses who is set aside; no secret.")] = 2018,
    signing_key_file: Annotated[
        Path, typer.Option("--signing-key", help="Ed25519 key (PEM) that signs the card; made where absent.")
    ] = Path("publisher.pem"),
    mixup: Annotated[float, typer.Option(help="Refused, with the reason: it blends patients.", min=0, max=10)] = 0.0,
    threads: Annotated[int, typer.Option(help="Processor threads.", min=1, max=64)] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Train a segmentation network under differential privacy, measure Dice and IoU, sign and publish it."""
    import torch  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch

    from . import examples, produce  # noqa: PLC0415

    refuse_mixup(mixup)
    if side % 8:
        raise typer.BadParameter("--side must be a multiple of 8")
    torch.set_num_threads(threads)
    console = Console()
    pairs = examples.phantoms(phantoms, side) if data is None else examples.read_pairs(data, side)
    order = produce.Order(version, epsilon, delta, seed_for_split, replace(produce.RECIPE, steps=steps))
    key = signing_key(signing_key_file)
    with Progress(console=console) as bars:
        bar = bars.add_task("private steps", total=steps)
        card = produce.produce(order, pairs, out, key, lambda step, of: bars.update(bar, completed=step, total=of))
    table = Table(title=f"{card.name} {card.version}: epsilon {card.privacy.epsilon}, delta {delta:g}, per patient")
    for column in ("figure", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for one in card.figures:
        table.add_row(one.name, f"{one.value:.3f}", f"{one.low:.3f} to {one.high:.3f}")
    console.print(table)
    console.print(f"published {out / version}, signed by {public_hex(key)}")
    if json_file is not None:
        figures = {one.name: one.model_dump(exclude={"name"}) for one in card.figures}
        content = {"epsilon": card.privacy.epsilon, "delta": delta, "data": card.data, **figures}
        json_file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
