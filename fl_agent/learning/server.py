"""What the coordinator does with a sum: server momentum (Hsu et al. 2019, arXiv 1909.06335) and averaged iterates.

All of it is post-processing of noised sums, so averages, the choice of the best round, and any number of looks at the
metrics cost no privacy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from secure_infer.models import Weights

from ..head import folded, standard_deviations
from . import metrics, site
from .metrics import Metrics
from .plan import Member, Plan
from .schedule import descended, factor
from .state import State
from .terms import MEAN, release_at

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """What the coordinator knows between two sums; nothing in it is about a single hospital.

    Attributes
    ----------
    done : int
        Sums known.
    centre : ndarray, shape (channels,)
    weights, velocity, average, ema, best : ndarray, shape (dimension,)
        Present weights, momentum, mean of the late iterates, their moving average, those of the least loss.
    averaged : int
        Iterates in `average`.
    least : float
        The least loss.
    undetermined : float or None
        Mean over the late rounds of the share between the operating points; None where nobody measured it.
    stale : int
        Rounds since the least loss.
    deviations : ndarray, shape (channels,), or None
        What each feature is scaled by; ones before they are known, None where the plan does not ask for them.
    """

    done: int
    centre: Array
    weights: Array
    velocity: Array
    average: Array
    ema: Array
    best: Array
    averaged: int = 0
    least: float = np.inf
    undetermined: float | None = None
    stale: int = 0
    deviations: Array | None = None

    @classmethod
    def start(cls, plan: Plan) -> Training:
        """Return what is known before the first sum: nothing."""
        zeros = np.zeros(plan.dimension)
        scaled = plan.centre is not None and plan.centre.squares is not None
        deviations = np.ones(plan.channels) if scaled else None
        return cls(0, np.zeros(plan.channels), zeros, zeros, zeros, zeros, zeros, deviations=deviations)

    def state(self) -> State:
        """Return what sites must know, rounded to binary32."""
        deviations = None if self.deviations is None else self.deviations.astype(np.float32)
        return State(self.done, self.centre.astype(np.float32), self.weights.astype(np.float32), deviations)

    def encode(self) -> bytes:
        """Write it as safetensors."""
        held = {name: value for name, value in vars(self).items() if value is not None}
        return save({name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in held.items()})

    @classmethod
    def read(cls, content: bytes) -> Training:
        """Read what `encode` wrote."""
        found: dict[str, Any] = load(content)
        for name in ("done", "averaged", "stale", "least", "undetermined"):
            if name in found:
                found[name] = float(found[name][0])
        found |= {name: int(found[name]) for name in ("done", "averaged", "stale")}
        return cls(**found)


def after(
    plan: Plan, training: Training, sums: Sequence[Array], survivors: Collection[Member]
) -> tuple[Training, Metrics | None]:
    """Take up a sum.

    Parameters
    ----------
    plan : Plan
    training : Training
        Before it.
    sums : sequence of ndarray
        One for each block of the header, in the header's units.
    survivors : collection of Member
        Whose contributions are in it.

    Returns
    -------
    training : Training
    metrics : Metrics or None
        Of the weights before this sum; None where the sum has none.
    """
    release = release_at(plan, training.done)
    patients = float(sum(one.patients for one in survivors))
    if release.name == MEAN:
        return _normalised(plan, training, sums, patients), None
    measured = None
    if plan.metrics_weight:
        rate, scale = release.sampling_rate, metrics.NORM / plan.metrics_weight
        drawn, units = (rate * patients, scale) if plan.mode == "distributed" else (patients, 1.0)
        measured = metrics.read(sums[1] * units, drawn)
        if measured.loss < training.least:
            training = replace(training, least=measured.loss, best=training.weights, stale=0)
        else:
            training = replace(training, stale=training.stale + 1)
        if training.averaged:
            share = training.undetermined if training.undetermined is not None else measured.undetermined
            training = replace(training, undetermined=share + (measured.undetermined - share) / training.averaged)
    return _stepped(plan, training, _change(plan, training, sums[0], survivors)), measured


def finished(plan: Plan, training: Training) -> bool:
    """Tell whether a run has all its sums, or has not improved for as long as its plan waits.

    Stopping by noised losses is post-processing: a plan's claim covers it, and the sites' ledgers take back what never
    began.
    """
    descent = plan.descent
    return training.done == plan.sums or bool(descent.patience and training.stale >= descent.patience)


def _normalised(plan: Plan, training: Training, sums: Sequence[Array], patients: float) -> Training:
    """Take up the first sum; where patients are counted in it, their noised number counts and not the public one."""
    assert plan.centre is not None
    if plan.centre.squares is None:
        return replace(training, done=training.done + 1, centre=sums[0] / patients)
    mean, squares, (count,) = sums
    count = max(float(count), 1.0)
    deviations = standard_deviations(mean / count, squares * plan.centre.squares / count)
    return replace(training, done=training.done + 1, centre=mean / count, deviations=deviations)


def _change(plan: Plan, training: Training, total: Array, survivors: Collection[Member]) -> Array:
    """Return by how much plain descent would change the weights."""
    descent = plan.descent
    if plan.mode == "site":
        change: Array = total / sum(site.weight(plan, one) for one in survivors)
        return change
    # The EXPECTED number of patients drawn, from public sizes; the drawn number would be data.
    mean = total * descent.clip / (descent.sampling_rate * sum(one.patients for one in survivors))
    step: Array = -descent.learning_rate * factor(plan, training.done) * mean
    return step


def _stepped(plan: Plan, training: Training, change: Array) -> Training:
    descent = plan.descent
    velocity = descent.momentum * training.velocity + change
    weights = training.weights + velocity
    step = descended(plan, training.done)
    average, averaged = training.average, training.averaged
    if step >= descent.rounds - max(1, round(descent.averaged * descent.rounds)):
        averaged += 1
        average = average + (weights - average) / averaged
    # Started at the first iterate and not at zero, an average needs no correction of its bias.
    ema = weights if step == 0 else descent.ema * training.ema + (1 - descent.ema) * weights
    return replace(
        training, done=training.done + 1, weights=weights, velocity=velocity, average=average, ema=ema,
        averaged=averaged,
    )  # fmt: skip


def published(plan: Plan, training: Training) -> Weights:
    """Return `head.weight`, shape (3, channels), and `head.bias`, shape (3,), for features as they are."""
    chosen = {"average": training.average, "ema": training.ema, "best": training.best, "last": training.weights}
    flat = chosen[plan.descent.published]
    # As sites saw them: they computed with numbers rounded to binary32.
    seen = training.state()
    centre = seen.centre.astype(np.float64)
    return folded(flat.reshape(plan.outputs, plan.channels + 1), centre, seen.deviations)
