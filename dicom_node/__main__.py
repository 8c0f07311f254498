"""The command line `dicom-node`: the clinical side of a site."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from .core import cli, logs, settings
from .core.errors import ConfigError
from .training import cli as training

app = cli.new_app("Receives chest X-ray studies over DICOM and sends the answers back as Structured Reports.")
app.add_typer(training.consent, name="consent")
app.add_typer(training.labels, name="labels")
out = Console()


@app.command()
def serve(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Receive studies, decide when they are complete, and deliver reports."""
    from .serve import serve as run  # noqa: PLC0415 - `--help` should not wait for the DICOM libraries

    loaded = settings.load(config)
    logs.configure("dicom-node serve", loaded.log.level)
    sys.exit(run(loaded))


@app.command()
def web(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Serve the admin pages."""
    from .web import serve as run  # noqa: PLC0415

    loaded = settings.load(config)
    logs.configure("dicom-node web", loaded.log.level)
    run(loaded)


@app.command()
def check(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Check settings, folders, records and every peer; one sentence per failure."""
    from .check import checks  # noqa: PLC0415

    loaded = settings.load(config)
    logs.configure("dicom-node check", "error")
    failed = 0
    for result in checks(loaded):
        failed += not result.ok
        mark = "[green]ok[/]" if result.ok else "[bold red]FAILED[/]"
        out.print(f"{mark:<8} {escape(f'{result.name}: {result.sentence}')}", highlight=False, soft_wrap=True)
    if failed:
        out.print(f"{failed} of the checks failed.", highlight=False)
        sys.exit(ConfigError.exit_status)


@app.command()
def send(
    files: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them", exists=True)],
    host: Annotated[str, typer.Option(help="the peer's host")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="the peer's port")] = 11112,
    called: Annotated[str, typer.Option(help="the peer's AE title")] = "VEILRAY",
    calling: Annotated[str, typer.Option(help="our AE title")] = "VEILRAY_SEND",
) -> None:
    """Send DICOM files by C-STORE and print the status of each."""
    from .scu import send as store  # noqa: PLC0415

    logs.configure("dicom-node send", "error")
    paths = [path for given in files for path in (sorted(given.rglob("*")) if given.is_dir() else [given])]
    paths = [path for path in paths if path.is_file()]
    table = Table("file", "status", "meaning")
    failed = 0
    outcomes = store(paths, host=host, port=port, called=called, calling=calling)
    for outcome in track(outcomes, description="Sending", total=len(paths), console=Console(stderr=True)):
        failed += not outcome.ok
        table.add_row(outcome.path.name, outcome.status_text, outcome.meaning)
    out.print(table)
    sys.exit(1 if failed else 0)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="where reports, logs and settings are left")] = Path("demo-out"),
    image: Annotated[list[Path] | None, typer.Option(help="a grey X-ray picture (JPEG, PNG) to send as DX")] = None,
    dicom: Annotated[list[Path] | None, typer.Option(help="a DICOM file to send as it is")] = None,
    studies: Annotated[int, typer.Option(min=0, max=100, help="how many phantoms to draw")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the results here")] = None,
    hold: Annotated[bool, typer.Option(help="keep everything running, with the admin pages, until Ctrl-C")] = False,
) -> None:
    """Run hospital, model owner, dealer and PACS on this machine and send studies through them."""
    from .demo.show import show  # noqa: PLC0415

    logs.configure("dicom-node demo", "error")
    # A default SIGTERM would end this process at once and leave every service of the demonstration running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    show(folder, images=image or [], dicoms=dicom or [], phantoms=studies, json_file=json_file, hold=hold, out=out)


def main() -> None:
    """Run the command line."""
    cli.run(app)


if __name__ == "__main__":
    main()
