"""The command `fl-agent simulate`: a whole federation on this machine, in one command."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy.special import softmax

from dicom_node.core import logs
from dicom_node.core.training_settings import PrivacySettings
from secure_infer.models import Weights

from ..figures import pneumonia_metrics
from ..learning import server
from ..learning.plan import Member, Plan
from ..learning.propose import Budget, default_descent, propose
from ..learning.site import Examples
from ..learning.terms import epsilons
from ..runreport import record
from . import arithmetic
from .data import Divided, drawn, kermany
from .federation import Federation, public


def simulate(
    sites: Annotated[int, typer.Option(help="Hospitals, of uneven sizes.", min=3, max=100)] = 3,
    secagg: Annotated[
        bool, typer.Option("--secagg/--no-secagg", help="Real frames through agents and coordinator, or bare sums.")
    ] = True,
    dp: Annotated[bool, typer.Option("--dp", help="Differential privacy; there is no run without.")] = True,
    epsilon: Annotated[float, typer.Option(help="Budget of one patient.", min=0.01)] = 3.0,
    delta: Annotated[float, typer.Option(help="Delta; below 1 / patients.", min=1e-12, max=1e-3)] = 1e-4,
    mode: Annotated[
        Literal["distributed", "site"], typer.Option(help="Who adds the noise: each site a share, or all of it.")
    ] = "distributed",
    honest: Annotated[int | None, typer.Option(help="Sites that epsilon counts on, in mode distributed.")] = None,
    rounds: Annotated[int, typer.Option(help="Secure sums of the descent.", min=1)] = 60,
    local_steps: Annotated[int, typer.Option(help="Steps at the site for each sum, in mode site.", min=1)] = 1,
    data: Annotated[Path | None, typer.Option(help="Folder that holds kermany224; else features are drawn.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for the trunk's features: patient data.")] = Path("feature-cache"),
    seed_for_split: Annotated[int, typer.Option(help="Divides the patients; no secret.")] = 2018,
    folder: Annotated[Path | None, typer.Option(help="Keeps everybody's state, and the record of the run.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Train with several hospitals on this machine: agents, ledgers, coordinator and frames are the real ones."""
    torch.set_num_threads(1)
    logs.configure("fl-agent simulate", "error")
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        if data is not None:
            divided = kermany(data, sites, cache, seed_for_split, progress)
        else:
            divided = drawn(sites, seed_for_split)
        budget = Budget(epsilon, delta, mode, honest)
        began = time.monotonic()
        with nullcontext(str(folder)) if folder else tempfile.TemporaryDirectory() as place:
            if secagg:
                figures, plan, weights = _through_frames(Path(place), divided, budget, rounds, local_steps, progress)
            else:
                figures, plan, weights = _bare(divided, budget, rounds, local_steps, progress)
    cost = epsilons(plan)
    figures |= {
        "data": divided.name,
        "mode": mode,
        "patients": {name: one.count for name, one in divided.sites.items()},
        "rounds": plan.descent.rounds,
        "delta": delta,
        "epsilon": cost.claimed,
        "epsilon_alone": cost.alone,
        "honest": plan.honest,
        "noise_multiplier": plan.descent.noise_multiplier,
        "secagg": secagg,
        "dp": dp,
        "seconds": time.monotonic() - began,
        "validation": _validation(weights, divided.validation),
    }
    console.print(_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def _plan(divided: Divided, members: tuple[Member, ...], budget: Budget, rounds: int, local_steps: int) -> Plan:
    descent = default_descent(rounds, local_steps=local_steps)
    return propose("simulated", members, divided.features, budget, descent)


def _through_frames(
    folder: Path, divided: Divided, budget: Budget, rounds: int, local_steps: int, progress: Any
) -> tuple[dict[str, Any], Plan, Weights]:
    # A little more than one run, for a life's bound is a little looser than a plan's.
    privacy = PrivacySettings(epsilon=2 * budget.epsilon, delta=budget.delta)
    with Federation(folder, divided.sites, privacy) as federation:
        plan = _plan(divided, federation.members, budget, rounds, local_steps)
        training = federation.run(plan, lambda done, sums: progress("secure sums", done, sums))
        found = record.read(federation.coordinator.folder(plan)).rounds
    traffic = {
        way: max(max(one.values()) for one in (getattr(each, way) for each in found))
        for way in ("bytes_up", "bytes_down")
    }
    figures = {
        **traffic,
        "seconds_per_round": sum(one.seconds for one in found) / len(found),
        "loss": [one.loss for one in found if one.loss is not None],
        "noised_auc": [one.metrics["auc"] for one in found if "auc" in one.metrics],
    }
    return figures, plan, server.published(plan, training)


def _bare(
    divided: Divided, budget: Budget, rounds: int, local_steps: int, progress: Any
) -> tuple[dict[str, Any], Plan, Weights]:
    members = tuple(
        Member(name=name, identity=public(Ed25519PrivateKey.generate()), patients=one.count)
        for name, one in divided.sites.items()
    )
    plan = _plan(divided, members, budget, rounds, local_steps)
    trained = arithmetic.train(plan, divided.sites, lambda done, sums: progress("sums", done, sums))
    figures = {"loss": [one.loss for one in trained.metrics], "noised_auc": [one.auc for one in trained.metrics]}
    return figures, plan, trained.weights


def _validation(weights: Weights, examples: Examples) -> dict[str, float]:
    """Figures on patients of no site, each image as it is; not on the test split."""
    logits = examples.features[:, 0] @ weights["head.weight"].T + weights["head.bias"]
    metrics = pneumonia_metrics(softmax(logits.astype("float64"), axis=1), examples.labels)
    everyone = torch.ones(len(examples.labels), dtype=torch.float64).numpy()
    return {name: float(metric(everyone)) for name, metric in metrics.items()}


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title=f"{figures['data']}, {len(figures['patients'])} sites, noise: {figures['mode']}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("epsilon", f"{figures['epsilon']:.3f}")
    table.add_row("epsilon if all others collude", f"{figures['epsilon_alone']:.3f}")
    table.add_row("delta", f"{figures['delta']:g}")
    for name, value in figures["validation"].items():
        table.add_row(f"validation: {name}", f"{value:.3f}")
    for name in ("bytes_up", "bytes_down", "seconds_per_round", "seconds"):
        if name in figures:
            table.add_row(name.replace("_", " "), f"{figures[name]:,.3g}" if "sec" in name else f"{figures[name]:,}")
    return table
