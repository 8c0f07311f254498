"""The command line `secure-infer`: encrypted inference at the hospital, the model owner and the dealer."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicom_node.core import cli, logs, settings
from dicom_node.core.errors import IntegrityError, Refused

if TYPE_CHECKING:
    from .models import ModelStore

app = cli.new_app("Classifies complete studies so that nobody sees the image and nobody sees the weights.")
models = cli.new_app("The models of a site or of a model owner.")
app.add_typer(models, name="models")
out = Console()
FolderOption = Annotated[Path | None, typer.Option("--folder", help="a model folder; the site's own when absent")]


@app.command()
def worker(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Classify complete studies: party 0, which holds the image and dials out only."""
    from .service import serve  # noqa: PLC0415 - `--help` should not wait for torch

    loaded = settings.load(config)
    logs.configure("secure-infer worker", loaded.log.level)
    sys.exit(serve(loaded))


@app.command()
def party(config: Annotated[Path, typer.Option("--config", "-c", help="the model owner's settings")]) -> None:
    """Answer encrypted queries: party 1, which holds the weights."""
    from .party import serve  # noqa: PLC0415

    logs.configure("secure-infer party")
    sys.exit(serve(config))


@app.command()
def dealer(config: Annotated[Path, typer.Option("--config", "-c", help="the dealer's settings")]) -> None:
    """Deal correlated randomness; sees neither image nor weights."""
    from .dealer import serve  # noqa: PLC0415

    logs.configure("secure-infer dealer")
    sys.exit(serve(config))


@app.command()
def audit(trail: Annotated[Path, typer.Argument(help="audit.sqlite3 of a party or dealer")]) -> None:
    """Check that no row of a party's or dealer's audit trail was altered; `dicom-node check` does so for a site."""
    from .operations.trail import verify  # noqa: PLC0415

    count, head = verify(trail)
    out.print(f"{count} rows, each following from the one before; the head is {head}.", soft_wrap=True, highlight=False)


@app.command()
def classify(
    files: Annotated[list[Path], typer.Argument(help="DICOM files, or grey pictures (JPEG, PNG)", exists=True)],
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
) -> None:
    """Classify single files with the site's engine and print the answers; nothing is stored or sent."""
    from .single import Classifier  # noqa: PLC0415

    loaded = settings.load(config)
    logs.configure("secure-infer classify", "error")
    table = Table("file", "answer", "pneumonia", "bacterial", "viral", "seconds")
    refused = []
    with Classifier(loaded) as classifier:
        for path in files:
            started = time.perf_counter()
            try:
                answer = classifier.classify(path)
            except Refused as error:
                refused.append((path.name, error))
                table.add_row(path.name, "refused")
                continue
            shares = [f"{100 * share:.1f} %" for share in (answer.pneumonia, answer.bacterial, answer.viral)]
            table.add_row(path.name, answer.answer, *shares, f"{time.perf_counter() - started:.2f}")
    out.print(table)
    for name, reason in refused:
        out.print(escape(f"{name}: {reason.code}: {reason}"), highlight=False, soft_wrap=True)
    out.print("Research use. Not a medical device. Unverified until a physician verifies it.")
    sys.exit(Refused.exit_status if refused else 0)


def _store(folder: Path | None, config: Path) -> ModelStore:
    from .models import ModelStore  # noqa: PLC0415

    if folder is not None:
        return ModelStore(folder)
    loaded = settings.load(config)
    return ModelStore(loaded.site.state_dir / "models", loaded.inference.trusted_publishers)


@models.command("list")
def list_models(folder: FolderOption = None, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """List the installed models, each verified."""
    store = _store(folder, config)
    table = Table("version", "active", "verified", "epsilon", "pneumonia AUC (95 %)", "bacterial/viral AUC (95 %)")
    for version in store.versions():
        try:
            card = store.verify(version)
        except IntegrityError as error:
            table.add_row(version, "", f"[bold red]{error.code}[/]")
            continue
        figures = {one.name: f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in card.figures}
        ranges = [figures.get(name, "not measured") for name in ("auc_pneumonia", "auc_bacterial_viral")]
        table.add_row(version, "yes" if store.is_active(version) else "", "yes", f"{card.privacy.epsilon:g}", *ranges)
    out.print(table)


@models.command()
def verify(version: str, folder: FolderOption = None, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Check a model's signature, card and, where they are, weights; print the card."""
    out.print_json(_store(folder, config).verify(version).model_dump_json())


@models.command()
def install(
    source: Annotated[Path, typer.Argument(help="folder with card.json and signature", exists=True, file_okay=False)],
    folder: FolderOption = None,
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
    with_weights: Annotated[bool, typer.Option(help="copy the weights too: only at their owner")] = False,
) -> None:
    """Verify a published model and copy it into the store."""
    card = _store(folder, config).install(source, with_weights=with_weights)
    out.print(f"installed {card.version}; it answers once it is activated: secure-infer models activate {card.version}")


@models.command()
def activate(version: str, folder: FolderOption = None, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Make a model the one that answers."""
    _store(folder, config).activate(version)
    out.print(f"{version} is active from each worker's next study on")


@models.command()
def retire(version: str, folder: FolderOption = None, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Let a party serve a version no longer: at once after SIGHUP, else from its next start."""
    _store(folder, config).retire(version)
    out.print(f"{version} is retired: systemctl reload veilray-party")


def main() -> None:
    """Run the command line."""
    cli.run(app)


if __name__ == "__main__":
    main()
