"""What a site computes for one sum: clipped per-patient vectors, whose noise is added before anything leaves.

Mode DISTRIBUTED (Kairouz, Liu, Steinke 2021, arXiv 2102.06387): integers, to which `secagg.client` adds this site's
share of discrete Gaussian noise. Mode SITE: DP-SGD (Abadi et al. 2016) with the whole noise, so what is summed is
private by itself. Neither trusts the state: whatever weights come, each patient's part is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..head import centred, linear_head, patient_means
from ..randomness import SecureSource
from ..secagg.encode import Values
from ..secagg.noise import nearest_rows
from ..train import Recipe, Rows, descend, patient_gradients, patient_rows, release_sum
from . import metrics
from .plan import Member, Plan
from .schedule import factor
from .state import State
from .terms import MEAN, Release, metrics_noise, release_at

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """A site's training rows; they never leave it.

    Attributes
    ----------
    features : ndarray of float32, shape (images, views, channels)
        Norm of each vector at most 1.
    labels : ndarray of int, shape (images,)
        0 normal, 1 bacterial, 2 viral; the same for all images of a patient.
    patients : ndarray of int, shape (images,)
        Number of each image's patient, from 0 without gaps.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of patients."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0


def contribution(plan: Plan, own: Member, state: State, examples: Examples, source: SecureSource) -> list[Values]:
    """Compute what this site gives to the next sum, one array for each block of the header.

    In mode DISTRIBUTED these are integers WITHOUT noise: nobody but `secagg.client.Client.contribute` may see them.

    Parameters
    ----------
    plan : Plan
    own : Member
        This site in the plan.
    state : State
        Of which the release follows.
    examples : Examples
        Of at least one patient.
    source : SecureSource
        Of the lottery, and of the noise in mode SITE.
    """
    release = release_at(plan, state.done)
    distributed = plan.mode == "distributed"
    if release.name == MEAN:
        rows = moments(plan, examples)
        ends = np.cumsum(release.lengths)[:-1]
        if distributed:
            return list(np.split(nearest_rows(rows, release.norm, release.norm / plan.resolution).sum(0), ends))
        return list(np.split(release_sum(rows, release.norm, release.noise_multiplier, source), ends))
    work = _Work(plan, state, examples)
    return work.gradients(release, source) if distributed else work.local_steps(own, source)


def moments(plan: Plan, examples: Examples) -> Array:
    """Give what each patient adds to the first sum: features and, where the plan asks, their squares, and 1.

    Returns
    -------
    ndarray of float64, shape (patients, lengths of the release)
        Squares are in units of `Centre.squares`, and clipped to norm 1.
    """
    means = patient_means(examples.features, examples.patients)
    if plan.centre is None or plan.centre.squares is None:
        return means
    squares = patient_means(examples.features**2, examples.patients)
    squares /= np.maximum(np.linalg.norm(squares, axis=1, keepdims=True), plan.centre.squares)
    return np.concatenate([means, squares, np.ones((len(means), 1))], axis=1)


class _Work:
    """The head at the state's weights, before this site's rows."""

    def __init__(self, plan: Plan, state: State, examples: Examples) -> None:
        self._plan, self._state = plan, state
        inputs = centred(examples.features, state.centre.astype(np.float64), state.deviations)
        rows = patient_rows(inputs, examples.labels, examples.patients)
        weights = torch.tensor(plan.descent.class_weights)[rows.labels]
        self._rows: Rows = replace(rows, weights=rows.weights * weights)
        self._head = linear_head(plan.channels)
        nn.utils.vector_to_parameters(torch.from_numpy(state.weights.copy()), self._head.parameters())

    def gradients(self, release: Release, source: SecureSource) -> list[Values]:
        """Sum the integers of a lottery's patients (mode DISTRIBUTED)."""
        plan, step = self._plan, release.norm / self._plan.resolution
        drawn = source.coins(self._rows.count, release.sampling_rate)
        measured = self._metrics() * (plan.metrics_weight / metrics.NORM) if plan.metrics_weight else None
        total = np.zeros(release.dimension, dtype=np.int64)
        for numbers, found in patient_gradients(self._head.weight.detach(), self._rows, drawn):
            length = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
            rows = found / np.maximum(length, plan.descent.clip)
            if measured is not None:
                rows = np.concatenate([rows, measured[numbers]], axis=1)
            total += nearest_rows(rows, release.norm, step).sum(0)
        return list(np.split(total, np.cumsum(release.lengths)[:-1]))

    def local_steps(self, own: Member, source: SecureSource) -> list[Values]:
        """Descend with this site's own noise and return the change, weighted by its public size (mode SITE)."""
        plan, descent = self._plan, self._plan.descent
        found: list[Values] = []
        if plan.metrics_weight:  # measured before the descent moves the head
            found.append(release_sum(self._metrics(), metrics.NORM, metrics_noise(plan), source))
        recipe = Recipe(
            steps=descent.local_steps,
            sampling_rate=descent.sampling_rate,
            clip=descent.clip,
            learning_rate=descent.learning_rate * factor(plan, self._state.done),
            momentum=0.0,
            averaged=0.0,
        )
        after = descend(self._head, self._rows, recipe, descent.noise_multiplier, source, patients=own.patients)
        change = after["weight"].double().numpy().ravel() - self._state.weights
        return [change * weight(plan, own), *found]

    def _metrics(self) -> Array:
        with torch.no_grad():
            logits = self._head(self._rows.inputs).double().numpy()
        return metrics.of_patients(logits, self._rows.labels.numpy(), self._rows.patients.numpy())


def weight(plan: Plan, member: Member) -> float:
    """Return a site's weight in mode SITE, 0..1: its public size over that of the largest."""
    return member.patients / max(one.patients for one in plan.members)
