"""A whole federation on this machine, from divided patients to figures."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy.special import softmax

from dicom_node.core.training_settings import PrivacySettings
from secure_infer.models import Weights

from ..figures import pneumonia_metrics
from ..learning import server
from ..learning.plan import Member, Plan
from ..learning.propose import Budget, default_descent, propose
from ..learning.site import Examples
from ..learning.terms import epsilons
from ..runreport import record, wording
from . import arithmetic
from .data import Divided, drawn, kermany
from .federation import Federation, public

#: Called with (what, done, of all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What `fl-agent simulate` was asked for; its options say what each means."""

    sites: int
    secagg: bool
    budget: Budget
    rounds: int
    local_steps: int
    data: Path | None
    cache: Path
    seed: int
    folder: Path | None


def run(wanted: Wanted, progress: Progress) -> dict[str, Any]:
    """Train and return the figures, of which JSON can be made."""
    torch.set_num_threads(1)
    if wanted.data is not None:
        divided = kermany(wanted.data, wanted.sites, wanted.cache, wanted.seed, progress)
    else:
        divided = drawn(wanted.sites, wanted.seed)
    budget, rounds, local_steps = wanted.budget, wanted.rounds, wanted.local_steps
    began = time.monotonic()
    with nullcontext(str(wanted.folder)) if wanted.folder else tempfile.TemporaryDirectory() as place:
        if wanted.secagg:
            figures, plan, weights = _through_frames(Path(place), divided, budget, rounds, local_steps, progress)
        else:
            figures, plan, weights = _bare(divided, budget, rounds, local_steps, progress)
    cost = epsilons(plan)
    return figures | {
        "data": divided.name,
        "mode": budget.mode,
        "patients": {name: one.count for name, one in divided.sites.items()},
        "rounds": plan.descent.rounds,
        "delta": budget.delta,
        "epsilon": cost.claimed,
        "epsilon_alone": cost.alone,
        "honest": plan.honest,
        "noise_multiplier": plan.descent.noise_multiplier,
        "secagg": wanted.secagg,
        "dp": True,
        "seconds": time.monotonic() - began,
        "validation": _validation(weights, divided.validation),
    }


def _plan(divided: Divided, members: tuple[Member, ...], budget: Budget, rounds: int, local_steps: int) -> Plan:
    descent = default_descent(rounds, local_steps=local_steps)
    return propose("simulated", members, divided.features, budget, descent)


def _through_frames(
    folder: Path, divided: Divided, budget: Budget, rounds: int, local_steps: int, progress: Progress
) -> tuple[dict[str, Any], Plan, Weights]:
    # A little more than one run, for a life's bound is a little looser than a plan's.
    privacy = PrivacySettings(epsilon=2 * budget.epsilon, delta=budget.delta)
    with Federation(folder, divided.sites, privacy) as federation:
        plan = _plan(divided, federation.members, budget, rounds, local_steps)
        training = federation.run(plan, lambda done, sums: progress("secure sums", done, sums))
        recorded = record.read(federation.coordinator.folder(plan))
    found, sums = recorded.rounds, wording.totals(recorded)
    traffic = {
        way: max(max(one.values()) for one in (getattr(each, way) for each in found))
        for way in ("bytes_up", "bytes_down")
    }
    figures = {
        **traffic,
        "by_site": {
            name: {"epsilon_alone": found[-1].epsilon[name], "bytes_up": sums.up[name], "bytes_down": sums.down[name]}
            for name in recorded.sites
        },
        "seconds_per_round": sum(one.seconds for one in found) / len(found),
        "loss": [one.loss for one in found if one.loss is not None],
        "noised_auc": [one.metrics["auc"] for one in found if "auc" in one.metrics],
    }
    return figures, plan, server.published(plan, training)


def _bare(
    divided: Divided, budget: Budget, rounds: int, local_steps: int, progress: Progress
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
