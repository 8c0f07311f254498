"""The commands `fl-agent candidates ...`: look at models of the consortium, compare, accept, activate, roll back."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicom_node.core import cli, logs, settings
from dicom_node.core.bars import bar
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError, IntegrityError, Refused
from dicom_node.core.settings import Settings
from secure_infer import site_models

from .candidates import Candidates
from .policy import objections

if TYPE_CHECKING:
    from ..figures import Interval
    from .evaluation import Comparison

app = cli.new_app("Models that a consortium made: nothing answers here before this site has accepted it.")
out = Console()
Version = Annotated[str, typer.Argument(help="version of the candidate")]
LOCAL = "Computed here from patients who agreed to training. These figures stay at this site; nothing is published."
FLATTERED = "Patients whom the candidate was trained with flatter it a little; differential privacy bounds how much."


@app.command("list")
def list_candidates(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """List the candidates, each verified."""
    with _site(config) as (_, _, candidates):
        table = Table("candidate", "state", "name", "epsilon", "epsilon alone", "delta")
        for version in candidates.versions():
            try:
                card = candidates.card(version)
            except (IntegrityError, Refused) as error:
                table.add_row(escape(version), f"[bold red]{error.code}[/]")
                continue
            alone = card.privacy.epsilon_alone
            shown = ("–" if alone is None else f"{alone:g}", f"{card.privacy.delta:g}")
            state = candidates.state(version)
            table.add_row(escape(version), state, escape(card.name), f"{card.privacy.epsilon:g}", *shown)
    out.print(table)


@app.command()
def show(version: Version, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Verify a candidate and print its card."""
    with _site(config) as (_, _, candidates):
        out.print_json(candidates.card(version).model_dump_json(exclude_none=True))


@app.command()
def receive(
    source: Annotated[Path, typer.Argument(help="folder of the version: card, signature, weights", exists=True)],
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
) -> None:
    """Verify a published model and keep it as a candidate."""
    with _site(config) as (_, _, candidates):
        card = candidates.receive(source.resolve())
    _say(f"received {card.version}; compare it: fl-agent candidates evaluate {card.version}")


@app.command("evaluate")
def evaluate_candidate(version: Version, config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Compare a candidate with the active model on this site's own labelled patients who agreed."""
    with _site(config) as (loaded, database, candidates):
        found = _compare(loaded, database, candidates, version)
        _print(found, version, site_models.version_in_use(loaded))
        _judge(found, loaded)


@app.command()
def accept(
    version: Version,
    operator: Annotated[
        str, typer.Option(help="who decides; needed unless training.handover.acceptance is policy")
    ] = "",
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
) -> None:
    """Accept a candidate: by a person, or by the site's rules on a fresh comparison."""
    with _site(config) as (loaded, database, candidates):
        if not operator and loaded.training.handover.acceptance != "policy":
            raise ConfigError(
                "a person accepts candidates here: say who with --operator NAME, or set training.handover.acceptance",
                code="no-operator",
            )
        if not operator:
            found = _compare(loaded, database, candidates, version)
            _print(found, version, site_models.version_in_use(loaded))
            if _judge(found, loaded):
                raise Refused(f"the site's rules do not accept {version}: see above", code="handover-policy")
        candidates.accept(version, f"{operator[:64]} ({getpass.getuser()})" if operator else "policy")
    _say(f"accepted {version}; it answers once activated: fl-agent candidates activate {version}")


@app.command()
def activate(
    version: Version,
    party_models: Annotated[
        Path | None, typer.Option(help="models folder of a party 1 on this machine; it gets the weights")
    ] = None,
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
) -> None:
    """Make an accepted candidate the model that answers, from the next study on."""
    with _site(config) as (_, _, candidates):
        card = candidates.activate(version, party_models)
    privacy = card.privacy
    _say(f"{version} answers from the next study on (epsilon {privacy.epsilon:g}, delta {privacy.delta:g} per patient)")
    _say("to take that back: fl-agent candidates rollback")


@app.command()
def rollback(config: cli.ConfigOption = cli.DEFAULT_CONFIG) -> None:
    """Make the model that answered before the newest activation answer again."""
    with _site(config) as (_, _, candidates):
        old, new = candidates.roll_back()
    _say(f"{new} answers again from the next study on; {old} is no longer accepted")


@contextmanager
def _site(config: Path) -> Iterator[tuple[Settings, Database, Candidates]]:
    loaded = settings.load(config)
    logs.configure("fl-agent", "error")
    database = Database(loaded.database_url)
    try:
        database.migrate()
        yield loaded, database, Candidates(loaded, database)
    finally:
        database.close()


def _compare(loaded: Settings, database: Database, candidates: Candidates, version: str) -> Comparison:
    from dicom_node.store import Store  # noqa: PLC0415 - the other commands should not wait for torch
    from dicom_node.training import subjects  # noqa: PLC0415
    from dicom_node.training.site_key import open_key  # noqa: PLC0415

    from ..site_images import SiteImages  # noqa: PLC0415
    from .evaluation import AsReported, InTheClear, evaluate  # noqa: PLC0415

    card = candidates.card(version)
    store = Store(loaded, database)
    key = open_key(loaded.training_key, database)
    with bar("Looking at studies") as done:
        subjects.refresh(database, store, subjects.Pseudonyms(key, loaded.training.issuer), done)
    images = SiteImages(database, store, key, loaded.selection, card.population)
    active = site_models.site_card(loaded)
    clear = loaded.inference.engine == "plaintext"
    weights = site_models.site_store(loaded).weights(active.version) if clear else None
    old = AsReported(database, active) if weights is None else InTheClear(active, weights)
    with bar("Comparing on patients") as done:
        found = evaluate(images, InTheClear(card, candidates.weights(version)), old, time.time(), done)
    candidates.evaluated(version)
    return found


def _print(found: Comparison, version: str, active: str) -> None:
    table = Table("figure (95 %)", f"candidate {version}", f"active {active}")
    for name, one in found.candidate.items():
        table.add_row(name, _interval(one), _interval(found.active[name]))
    if found.gain is not None:
        table.add_row("gain in auc_pneumonia", _interval(found.gain, signed=True), "")
    out.print(table)
    _say(f"{found.ill} ill and {found.healthy} healthy patients were compared, each once.")
    if found.left_out:
        _say("Left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(found.left_out.items())) + ".")
    _say(LOCAL)
    _say(FLATTERED)


def _judge(found: Comparison, loaded: Settings) -> tuple[str, ...]:
    against = objections(found, loaded.training.handover)
    for one in against:
        _say(f"Against it: {one}.")
    if not against:
        _say("The site's rules would accept it.")
    return against


def _interval(one: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{one.value:{sign}.3f} ({one.low:{sign}.3f} to {one.high:{sign}.3f})"


def _say(sentence: str) -> None:
    out.print(sentence, highlight=False, markup=False, soft_wrap=True)
