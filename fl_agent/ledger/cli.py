"""The command `fl-agent budget`: the account of Rogers et al. 2016 (arXiv 1605.08294) as tables and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicom_node.core import cli, settings
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError

from .ledger import Ledger
from .statement import Line, Statement, statement


def budget(
    config: cli.ConfigOption = cli.DEFAULT_CONFIG,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the account to this file")] = None,
) -> None:
    """Show how much of the privacy budget is used and left, by patient set, run and model."""
    loaded = settings.load(config)
    database = Database(loaded.database_url)
    try:
        if not database.is_current():
            raise ConfigError(
                "the site's records are not of this version: start `dicom-node serve` once", code="schema"
            )
        account = statement(Ledger(database, loaded.training.privacy))
    finally:
        database.close()
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(account), indent=2, allow_nan=False) + "\n")
    console = Console()
    for table in tables(account):
        console.print(table)


def as_json(account: Statement) -> dict[str, Any]:
    """Give the account as JSON values; an epsilon without bound is null."""

    def line(one: Line) -> dict[str, Any]:
        values = dataclasses.asdict(one)
        return {key: None if value == math.inf else value for key, value in values.items()}

    return {
        "limits": account.limits.model_dump(mode="json"),
        "sets": [{**line(one), "left": left} for one, left in zip(account.sets, account.left, strict=True)],
        "runs": [line(one) for one in account.runs],
        "models": [line(one) for one in account.models],
    }


def tables(account: Statement) -> list[Table]:
    """Lay the account out as three tables."""
    limits = account.limits
    alone = "no limit" if limits.epsilon_alone is None else f"limit {limits.epsilon_alone:g}"
    sets = Table(
        title=f"Privacy budget per patient: epsilon {limits.epsilon:g}, delta {limits.delta:g}; alone: {alone}",
        caption="reserved and never closed counts as used; alone: if every other hospital colludes",
    )
    for column in ("patient set", "used", "left", "used alone", "reservations", "open"):
        sets.add_column(column, justify="left" if column == "patient set" else "right")
    for one, left in zip(account.sets, account.left, strict=True):
        sets.add_row(
            escape(one.name), _round_up(one.epsilon), f"{math.floor(left * 1000) / 1000:.3f}",
            _round_up(one.epsilon_alone), str(one.reservations), str(one.open),
        )  # fmt: skip
    return [sets, _parts("run", account.runs), _parts("model", account.models)]


def _parts(kind: str, lines: Sequence[Line]) -> Table:
    table = Table(title=f"By {kind}, each for itself")
    for column in (kind, "patient set", "epsilon", "epsilon alone", "reservations", "open"):
        table.add_column(column, justify="left" if column in {kind, "patient set"} else "right")
    for one in lines:
        table.add_row(
            escape(one.name), escape(one.patient_set), _round_up(one.epsilon), _round_up(one.epsilon_alone),
            str(one.reservations), str(one.open),
        )  # fmt: skip
    return table


def _round_up(epsilon: float) -> str:
    return "unbounded" if epsilon == math.inf else f"{math.ceil(epsilon * 1000) / 1000:.3f}"
