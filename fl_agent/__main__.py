"""The command `fl-agent`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.core import cli
from dicom_node.core.bars import bars
from dicom_node.core.errors import VeilRayError
from secure_infer.card import ModelCard
from secure_infer.models import ModelStore, public_hex, signing_key

from .agent.cli import identity, run
from .coordinator.cli import coordinator
from .courier.nvflare.cli import provision, relay
from .handover.cli import app as candidates
from .ledger.cli import budget
from .order import HEAD, NETWORKS, Order
from .runreport.cli import progress, report
from .search.cli import search
from .segmentation.cli import train_segmentation
from .simulate.cli import simulate
from .trial.cli import app as consortium

app = cli.new_app("Train pneumonia models with differential privacy.")
app.command()(budget)
for command in (run, identity, coordinator, simulate, search, train_segmentation):
    app.command()(command)
app.command()(provision)
app.command()(relay)
app.add_typer(consortium, name="consortium")
app.command()(progress)
app.command()(report)
app.add_typer(candidates, name="candidates")


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of kermany224, or of films in normal, bacterial, viral.", exists=True, file_okay=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Model store that receives the new version.")],
    version: Annotated[str, typer.Option(help="Version of the new model; never used again.")],
    network: Annotated[
        str, typer.Option(help=f"What is private: {HEAD} on the public trunk, or {', '.join(NETWORKS)}.")
    ] = HEAD,
    cut: Annotated[
        str | None,
        typer.Option(help="Last public stage of the trunk (stem, block0 to block15), for efficientnet-lite0."),
    ] = None,
    epsilon: Annotated[float, typer.Option(help="Privacy budget of one patient.", min=0.01)] = 3.0,
    delta: Annotated[float, typer.Option(help="Delta; below 1 / patients.", min=1e-12, max=0.5)] = 1e-4,
    seed_for_split: Annotated[int, typer.Option(help="Chooses the validation patients; no secret.")] = 2018,
    signing_key_file: Annotated[
        Path, typer.Option("--signing-key", help="Ed25519 key (PEM) that signs the card; made where absent.")
    ] = Path("publisher.pem"),
    cache: Annotated[Path, typer.Option(help="Folder for the trunk's features: patient data.")] = Path("feature-cache"),
    mixup: Annotated[float, typer.Option(help="Refused, with the reason: it blends patients.", min=0, max=10)] = 0.0,
    threads: Annotated[int, typer.Option(help="Processor threads.", min=1, max=64)] = 2,
) -> None:
    """Train under differential privacy, calibrate, evaluate once on the test split, sign and publish a model."""
    import torch  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch

    from .produce import produce  # noqa: PLC0415

    if network not in (HEAD, *NETWORKS):
        raise typer.BadParameter(f"{network} is not among {', '.join((HEAD, *NETWORKS))}")
    torch.set_num_threads(threads)
    console = Console()
    try:
        key = signing_key(signing_key_file)
        with bars(console) as progress:
            order = Order(data, cache, version, epsilon, delta, seed_for_split, network, cut, mixup)
            card = produce(order, ModelStore(out), key, progress)
    except VeilRayError as error:
        console.print(f"[red]{error.code}[/red]: {error}")
        raise typer.Exit(error.exit_status) from error
    console.print(_table(card))
    console.print(f"published {out / version}, signed by {public_hex(key)}")


def _table(card: ModelCard) -> Table:
    privacy = card.privacy
    table = Table(title=f"{card.name} {card.version}: epsilon {privacy.epsilon}, delta {privacy.delta:g}, per patient")
    for column in ("test figure", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "test figure" else "right")
    for figure in card.figures:
        table.add_row(figure.name, f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}")
    return table


def main() -> None:
    """Run the command line."""
    cli.run(app)


if __name__ == "__main__":
    main()
