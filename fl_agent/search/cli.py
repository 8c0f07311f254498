"""The command `fl-agent search`: hyper-parameters chosen over a federation on this machine, with all that they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.core import logs
from dicom_node.core.bars import bars
from dicom_node.core.errors import ConfigError
from dicom_node.core.training_settings import PrivacySettings

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from .search import Found

Range = tuple[float, float]


def search(
    folder: Annotated[Path, typer.Option(help="Keeps the study and everybody's state; the search goes on from it.")],
    trials: Annotated[int, typer.Option(help="Runs at most.", min=1, max=1000)] = 12,
    rounds: Annotated[int, typer.Option(help="Secure sums of each trial's descent.", min=1)] = 30,
    sites: Annotated[int, typer.Option(help="Hospitals, of uneven sizes.", min=3, max=100)] = 3,
    epsilon: Annotated[float, typer.Option(help="Budget of one patient for ALL trials together.", min=0.01)] = 3.0,
    delta: Annotated[float, typer.Option(help="Delta; below 1 / patients.", min=1e-12, max=1e-3)] = 1e-4,
    site_epsilon: Annotated[
        float | None, typer.Option(help="What each site's ledger allows over its life; else twice --epsilon.", min=0.01)
    ] = None,
    mode: Annotated[
        Literal["distributed", "site"], typer.Option(help="Who adds the noise: each site a share, or all of it.")
    ] = "distributed",
    honest: Annotated[int | None, typer.Option(help="Sites that epsilon counts on, in mode distributed.")] = None,
    learning_rate: Annotated[Range, typer.Option(help="Lowest and highest, logarithmic.")] = (1.0, 100.0),
    clip: Annotated[Range, typer.Option(help="Lowest and highest norm of a gradient, logarithmic.")] = (0.05, 1.0),
    momentum: Annotated[Range, typer.Option(help="Lowest and highest.")] = (0.0, 0.95),
    data: Annotated[Path | None, typer.Option(help="Folder that holds kermany224; else features are drawn.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for the trunk's features: patient data.")] = Path("feature-cache"),
    seed_for_split: Annotated[int, typer.Option(help="Divides the patients; no secret.")] = 2018,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
) -> None:
    """Search learning rate, clip, momentum and schedule by noised losses; every trial is paid for at every site."""
    import torch  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch

    from ..learning.propose import Budget  # noqa: PLC0415
    from ..simulate import data as sources  # noqa: PLC0415
    from ..simulate.federation import Federation  # noqa: PLC0415
    from .terms import Space, Terms  # noqa: PLC0415

    try:
        from .search import Search  # noqa: PLC0415 - Optuna comes with the extra `consortium` alone
        from .study import Study  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"a search needs {error.name}: install veilray[consortium]", code="not-installed") from error
    for name, (low, high) in (("learning-rate", learning_rate), ("clip", clip), ("momentum", momentum)):
        if not (0.0 if name == "momentum" else 1e-9) <= low <= high or (name == "momentum" and high >= 1):
            raise typer.BadParameter(f"--{name} takes the lowest value, then the highest")
    torch.set_num_threads(1)
    logs.configure("fl-agent search", "error")
    console = Console()
    with bars(console) as progress:
        if data is not None:
            divided = sources.kermany(data, sites, cache, seed_for_split, progress)
        else:
            divided = sources.drawn(sites, seed_for_split)
        privacy = PrivacySettings(epsilon=site_epsilon or 2 * epsilon, delta=delta)
        with Federation(folder, divided.sites, privacy) as federation:
            terms = Terms(
                name="search",
                trials=trials,
                rounds=rounds,
                spare=2,
                budget=Budget(epsilon, delta, mode, honest),
                members=federation.members,
                features=divided.features,
                space=Space(learning_rate, clip, momentum),
            )
            study = Study(folder / "study.sqlite3", terms)
            try:
                ledgers = {name: one.ledger for name, one in federation.hospitals.items()}
                found = Search(terms, study, federation.coordinator, federation.records, ledgers).run(
                    lambda trial, of, done, sums: progress(f"trial {trial} of {of}", done, sums)
                )
                result = _result(found, terms, divided.name, ledgers)
            finally:
                study.close()
    console.print(_table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _result(found: Found, terms: Any, data: str, ledgers: dict[str, Ledger]) -> dict[str, Any]:
    from ..ledger.statement import statement  # noqa: PLC0415

    return {
        "data": data,
        "epsilon": found.spent.claimed,
        "epsilon_alone": found.spent.alone,
        "epsilon_of_all_trials": found.whole.claimed,
        "delta": terms.budget.delta,
        "mode": terms.budget.mode,
        "rounds": terms.rounds,
        "site_epsilon_used": {name: statement(ledger).sets[0].epsilon for name, ledger in ledgers.items()},
        "loss_noise": found.loss_noise,
        "best": None if found.best is None else found.best.number,
        "trials": [{"trial": one.number, "loss": one.loss, **one.chosen} for one in found.trials],
    }


def _table(result: dict[str, Any]) -> Table:
    used = max(result["site_epsilon_used"].values())
    table = Table(
        title=f"{len(result['trials'])} trials on {result['data']}: epsilon {result['epsilon']:.3f}, "
        f"delta {result['delta']:g}, per patient",
        caption=f"losses are noised, standard deviation {result['loss_noise']:.2g}; "
        f"the sites' ledgers stand at {used:.3f} at most",
    )
    for column in ("trial", "noised loss", "learning rate", "clip", "momentum", "schedule"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    for one in sorted(result["trials"], key=lambda one: (one["loss"] is None, one["loss"])):
        loss = "none" if one["loss"] is None else f"{one['loss']:.3f}"
        values = (f"{one[name]:.3g}" for name in ("learning_rate", "clip", "momentum"))
        style = "bold" if one["trial"] == result["best"] else ""
        table.add_row(str(one["trial"]), loss, *values, one["schedule"], style=style)
    return table
