"""The command `fl-agent search`: hyper-parameters chosen over hospitals, real or simulated, with all that they cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.core import logs, settings
from dicom_node.core.bars import bars
from dicom_node.core.errors import ConfigError
from dicom_node.core.training_settings import PrivacySettings

if TYPE_CHECKING:
    from ..learning.plan import Descent
    from ..learning.propose import Budget
    from ..simulate.data import Divided
    from .search import Found
    from .terms import Space, Terms

Range = tuple[float, float]
Show = Callable[[int, int, int, int], None]
#: Options of a search over simulated hospitals alone.
SIMULATED: Final = (
    *("folder", "rounds", "sites", "epsilon", "delta", "site_epsilon", "mode", "honest", "data", "cache"),
    "seed_for_split",
)


def search(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A coordinator's settings: search over its hospitals.", exists=True),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Without --config: keeps the study and everybody's state; the search goes on from it."),
    ] = None,
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
    """Search learning rate, clip, momentum and schedule by noised losses; every trial is paid for at every site.

    With --config a trial is a run of that coordinator, on the terms of its [run], whose epsilon is then that of ALL
    trials. Without, the hospitals are simulated here.
    """
    import torch  # noqa: PLC0415 - the other commands, and `--help`, should not wait for torch

    from ..learning.propose import Budget, default_descent  # noqa: PLC0415
    from ..simulate import data as sources  # noqa: PLC0415
    from .terms import Space  # noqa: PLC0415

    try:
        from . import study  # noqa: F401, PLC0415 - Optuna comes with the extra `consortium` alone
    except ModuleNotFoundError as error:
        raise ConfigError(f"a search needs {error.name}: install veilray[consortium]", code="not-installed") from error
    for name, (low, high) in (("learning-rate", learning_rate), ("clip", clip), ("momentum", momentum)):
        if not (0.0 if name == "momentum" else 1e-9) <= low <= high or (name == "momentum" and high >= 1):
            raise typer.BadParameter(f"--{name} takes the lowest value, then the highest")
    torch.set_num_threads(1)
    space, console = Space(learning_rate, clip, momentum), Console()
    given = [name for name in SIMULATED if (it := context.get_parameter_source(name)) and it.name != "DEFAULT"]
    if config is not None and given:
        raise typer.BadParameter(f"--config leaves no choice of --{given[0].replace('_', '-')}: its [run] has it")
    with bars(console) as progress:

        def show(trial: int, of: int, done: int, sums: int) -> None:
            progress(f"trial {trial} of {of}", done, sums)

        if config is not None:
            result = _over_hospitals(config, trials, space, show)
        elif folder is None:
            raise typer.BadParameter("name a --folder for simulated hospitals, or the --config of a coordinator")
        else:
            logs.configure("fl-agent search", "error")
            if data is not None:
                divided = sources.kermany(data, sites, cache, seed_for_split, progress)
            else:
                divided = sources.drawn(sites, seed_for_split)
            privacy = PrivacySettings(epsilon=site_epsilon or 2 * epsilon, delta=delta)
            budget = Budget(epsilon, delta, mode, honest, runs=trials)
            result = _over_simulated(folder, divided, privacy, budget, default_descent(rounds, spare=2), space, show)
    console.print(_table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _over_hospitals(config: Path, trials: int, space: Space, show: Show) -> dict[str, Any]:
    from ..coordinator.settings import CoordinatorSettings  # noqa: PLC0415
    from . import service  # noqa: PLC0415

    loaded = settings.read(config, CoordinatorSettings)
    logs.configure("fl-agent search", "warning")
    terms = service.terms_of(loaded, trials, space)
    found = service.search(loaded, terms, show)
    return _result(found, terms, f"{len(loaded.members)} hospitals", {})


def _over_simulated(
    folder: Path,
    divided: Divided,
    privacy: PrivacySettings,
    budget: Budget,
    descent: Descent,
    space: Space,
    show: Show,
) -> dict[str, Any]:
    from ..learning.propose import propose  # noqa: PLC0415
    from ..ledger.statement import statement  # noqa: PLC0415
    from ..simulate.federation import Federation  # noqa: PLC0415
    from .search import Search  # noqa: PLC0415
    from .study import Study  # noqa: PLC0415
    from .terms import METRICS_WEIGHT, Terms  # noqa: PLC0415

    with Federation(folder, divided.sites, privacy) as federation:
        plan = propose(
            "search", federation.members, divided.features, budget, descent, metrics_weight=METRICS_WEIGHT
        )  # fmt: skip
        terms = Terms(budget.runs, plan, space)
        ledgers = {name: one.ledger for name, one in federation.hospitals.items()}
        study = Study(folder / "study.sqlite3", terms)
        try:
            found = Search(terms, study, federation.coordinator, federation.records, ledgers).run(show)
        finally:
            study.close()
        used = {name: statement(ledger).sets[0].epsilon for name, ledger in ledgers.items()}
    return _result(found, terms, divided.name, used)


def _result(found: Found, terms: Terms, data: str, used: dict[str, float]) -> dict[str, Any]:
    return {
        "data": data,
        "epsilon": found.spent.claimed,
        "epsilon_alone": found.spent.alone,
        "epsilon_of_all_trials": found.whole.claimed,
        "delta": terms.template.delta,
        "mode": terms.template.mode,
        "rounds": terms.template.descent.rounds,
        "site_epsilon_used": used,
        "loss_noise": found.loss_noise,
        "best": None if found.best is None else found.best.number,
        "trials": [{"trial": one.number, "loss": one.loss, **one.chosen} for one in found.trials],
    }


def _table(result: dict[str, Any]) -> Table:
    used = result["site_epsilon_used"].values()
    account = (
        f"the sites' ledgers stand at {max(used):.3f} at most" if used else "`fl-agent budget` at each tells the rest"
    )
    table = Table(
        title=f"{len(result['trials'])} trials on {result['data']}: epsilon {result['epsilon']:.3f}, "
        f"delta {result['delta']:g}, per patient",
        caption=f"losses are noised, standard deviation {result['loss_noise']:.2g}; {account}",
    )
    for column in ("trial", "noised loss", "learning rate", "clip", "momentum", "schedule"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    for one in sorted(result["trials"], key=lambda one: (one["loss"] is None, one["loss"])):
        loss = "none" if one["loss"] is None else f"{one['loss']:.3f}"
        values = (f"{one[name]:.3g}" for name in ("learning_rate", "clip", "momentum"))
        style = "bold" if one["trial"] == result["best"] else ""
        table.add_row(str(one["trial"]), loss, *values, one["schedule"], style=style)
    return table
