"""The commands `dicom-node consent` and `dicom-node labels`.

Identifiers of patients are asked for and never taken as arguments: arguments stay in the shell's history and show in
the list of processes.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.core import cli, logs, settings
from dicom_node.core.bars import bar
from dicom_node.core.errors import ConfigError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from dicom_node.core.database import Database

    from .subjects import Pseudonyms, Subject

consent = cli.new_app("Who agreed to training and who did not; whoever is not named has not agreed.")
labels = cli.new_app("What the studies show, as training needs it.")
out = Console()
T = TypeVar("T")

ListFile = Annotated[Path, typer.Argument(help="a list (CSV, UTF-8)", exists=True, dir_okay=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only show what would change")]
By = Annotated[Literal["patient", "study", "accession"], typer.Option("--by", help="what you will be asked for")]


@consent.command("import")
def import_consent(file: ListFile, dry_run: DryRun = False, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Take over a list of decisions, whole or not at all.

    Columns: Consent (yes or no), exactly one of PatientID (with IssuerOfPatientID), StudyInstanceUID and
    AccessionNumber, and Until (2027-12-31) where an agreement ends.
    """
    from . import consent as room  # noqa: PLC0415 - `--help` should not wait for the DICOM libraries

    with _site(config, refresh=True) as (database, names):
        changes = room.read_list(file, names)
        with _writing(database, dry_run) as connection:
            outcome = room.record(connection, _tracked(changes), _actor("consent import"), time.time())
    _say(dry_run, f"{outcome.given} agreed, {outcome.withdrawn} opted out, {outcome.unchanged} as before.")
    if outcome.unmatched:
        _say(dry_run, f"These lines cover no study received so far: {_numbers(outcome.unmatched)}. Check them.")


@consent.command("set")
def set_consent(
    by: By = "patient",
    until: Annotated[str, typer.Option(help="last day of the agreement, e.g. 2027-12-31")] = "",
    dry_run: DryRun = False,
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
) -> None:
    """Record that one patient agreed, or agreed for one study; also after an opt-out."""
    from . import consent as room  # noqa: PLC0415

    try:
        expires = room.end_of_day(until) if until else None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _decide(by, room.Decision.GIVEN, expires, dry_run, config)


@consent.command()
def withdraw(by: By = "patient", dry_run: DryRun = False, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Record that one patient opts out, or opts out with one study; it counts from the next round on."""
    from . import consent as room  # noqa: PLC0415

    _decide(by, room.Decision.WITHDRAWN, None, dry_run, config)


@consent.command()
def show(
    by: Annotated[
        Literal["", "patient", "study", "accession"],
        typer.Option("--by", help="also show the decision on one"),
    ] = "",
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
) -> None:
    """Show how many patients may be trained with, and on request one decision."""
    from . import consent as room  # noqa: PLC0415
    from . import eligible  # noqa: PLC0415

    with _site(config, refresh=True) as (database, names):
        who = _ask(by, names) if by else None
        with database.read() as connection:
            now = time.time()
            agreed = room.eligible(connection, now)
            labelled = eligible.patients(connection, now)
            found = room.find(connection, who) if who else None
    if who:
        until = "" if found is None or found.expires_at is None else f" until {time.ctime(found.expires_at)}"
        out.print(f"this {who.kind}: {'no decision' if found is None else found.decision}{until}", highlight=False)
    patients = len({row.patient_key for row in agreed})
    out.print(
        f"{len(agreed)} studies of {patients} patients may be used; {len(labelled)} of these patients are labelled.",
        highlight=False,
    )


@labels.command("import")
def import_labels(
    file: ListFile,
    skip_unknown: Annotated[bool, typer.Option(help="leave out studies that were not received")] = False,
    replace: Annotated[bool, typer.Option(help="change labels of earlier lists")] = False,
    dry_run: DryRun = False,
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
) -> None:
    """Take over a list of labels, whole or not at all.

    Columns: Label (normal, bacterial, viral, or pneumonia where its kind is not known) and exactly one of
    StudyInstanceUID and AccessionNumber.
    """
    from . import labels as room  # noqa: PLC0415

    with _site(config, refresh=True) as (database, names):
        lines = room.read_list(file, names)
        with _writing(database, dry_run) as connection:
            outcome = room.record_list(
                connection,
                _tracked(lines),
                _actor("labels import"),
                time.time(),
                skip_unknown=skip_unknown,
                replace=replace,
            )
    _say(dry_run, f"{outcome.added} new labels, {outcome.changed} changed, {outcome.unchanged} as before.")
    if outcome.unknown:
        _say(dry_run, f"Left out, because no such study was received: lines {_numbers(outcome.unknown)}.")


@labels.command()
def collect(dry_run: DryRun = False, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Read labels from the reports in Orthanc that a physician verified."""
    from dicom_node.orthanc import OrthancClient  # noqa: PLC0415

    from . import collect as room  # noqa: PLC0415

    chosen = settings.load(config).orthanc
    if chosen is None:
        raise ConfigError("verified reports are read from an Orthanc: add the section [orthanc]")
    with _site(config, refresh=False) as (database, _), OrthancClient(chosen) as client:
        with bar("Reading reports") as done:
            found = room.find(database, client, done)
        with _writing(database, dry_run) as connection:
            new, gone = room.record(connection, found, _actor("labels collect"), time.time())
    _say(dry_run, f"{new} labels from verified reports, {gone} taken back.")
    _say(
        dry_run, f"{found.unverified} reports are not verified, {found.refused} contradict themselves or are malformed."
    )


@labels.command("show")
def show_labels(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Show how many studies have which label, by source."""
    from . import labels as room  # noqa: PLC0415

    with _site(config, refresh=False) as (database, _), database.read() as connection:
        counts = room.counts(connection)
    table = Table("source", "label", "studies")
    for (source, value), number in sorted(counts.items()):
        table.add_row(source, value, str(number))
    out.print(table)


def _decide(by: str, decision: str, expires: float | None, dry_run: bool, config: Path) -> None:
    from . import consent as room  # noqa: PLC0415

    with _site(config, refresh=True) as (database, names):
        change = room.Change(_ask(by, names), room.Decision(decision), expires)
        with _writing(database, dry_run) as connection:
            actor = _actor(f"consent {decision}")
            outcome = room.record(connection, [change], actor, time.time(), allow_reversal=True)
    _say(dry_run, "Nothing changed: it was so before." if outcome.unchanged else f"Recorded: {decision}.")
    if outcome.unmatched:
        _say(dry_run, "No study received so far is covered: check what you typed.")


def _ask(by: str, names: Pseudonyms) -> Subject:
    prompts = {"patient": "Patient ID", "study": "Study Instance UID", "accession": "Accession Number"}
    value = typer.prompt(prompts[by]).strip()
    if not value:
        raise ConfigError(f"{prompts[by]} must not be blank")
    if by == "patient":
        return names.patient(value, typer.prompt("Issuer of Patient ID (may be empty)", default="", show_default=False))
    return names.study(value) if by == "study" else names.accession(value)


@contextmanager
def _site(config: Path, *, refresh: bool) -> Iterator[tuple[Database, Pseudonyms]]:
    """Open a site's records, with its key, and look at the studies that came since the last command."""
    from dicom_node.core.database import Database  # noqa: PLC0415
    from dicom_node.store import Store  # noqa: PLC0415

    from . import subjects  # noqa: PLC0415
    from .site_key import open_key  # noqa: PLC0415

    loaded = settings.load(config)
    logs.configure("dicom-node", "error")
    database = Database(loaded.database_url)
    try:
        database.migrate()
        names = subjects.Pseudonyms(open_key(loaded.training_key, database), loaded.training.issuer)
        if refresh:
            with bar("Looking at studies") as done:
                subjects.refresh(database, Store(loaded, database), names, done)
        yield database, names
    finally:
        database.close()


class _NotWanted(Exception):
    """Ends a dry run's transaction without a commit."""


@contextmanager
def _writing(database: Database, dry_run: bool) -> Iterator[sa.Connection]:
    """Open one transaction for everything; a dry run goes the whole way and then rolls back."""
    try:
        with database.write() as connection:
            yield connection
            if dry_run:
                raise _NotWanted
    except _NotWanted:
        return


def _tracked(items: list[T]) -> Iterator[T]:
    with bar("Recording") as done:
        for number, item in enumerate(items, start=1):
            yield item
            done(number, len(items))


def _actor(command: str) -> str:
    return f"dicom-node {command} ({getpass.getuser()})"[:120]


def _say(dry_run: bool, sentence: str) -> None:
    out.print(f"{'[bold]dry run[/]: ' if dry_run else ''}{sentence}", highlight=False, soft_wrap=True)


def _numbers(lines: tuple[int, ...]) -> str:
    shown = ", ".join(str(line) for line in lines[:20])
    return shown if len(lines) <= 20 else f"{shown} and {len(lines) - 20} more"
