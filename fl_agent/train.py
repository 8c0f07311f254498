"""Differentially private training of the private head: DP-SGD (Abadi et al. 2016, arXiv 1607.00133) with Opacus.

The unit of privacy is the PATIENT: all images of a child make one row, whose loss is the mean over the images, so the
gradient that Opacus clips is the child's and not the image's. Two sets of data differ by one whole child.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from dicom_node.core.errors import ConfigError
from secure_infer.card import Mechanism

from .randomness import SecureSource

#: Rows whose gradients are held at once; clipping is per row, so this changes memory and never the result.
PHYSICAL_ROWS = 512


@dataclass(frozen=True)
class Recipe:
    """How a small model descends; chosen before, never from the test split.

    Attributes
    ----------
    steps : int
    sampling_rate : float
        Probability that a patient takes part in a step; 1 is the full batch, the same accounting with no lottery.
    clip : float
        Largest Euclidean norm of one patient's gradient.
    learning_rate, momentum : float
    averaged : float
        Share of the last steps whose iterates are averaged; that is free under DP and undoes much of the noise.
    """

    steps: int
    sampling_rate: float
    clip: float
    learning_rate: float
    momentum: float
    averaged: float = 0.5


@dataclass(frozen=True)
class Rows:
    """One row for each patient.

    Attributes
    ----------
    inputs : Tensor of float32, shape (patients, images, ...)
        Padded with zeros to the largest number of images.
    labels : Tensor of int64, shape (patients,)
    weights : Tensor of float32, shape (patients, images)
        1 / (images of the patient), 0 on the padding: each patient's weights sum to 1.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Opacus's optimizer with noise from `SecureSource`; its own secure mode needs a package that is gone."""

    def __init__(self, optimizer: torch.optim.Optimizer, source: SecureSource, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self._source = source

    def add_noise(self) -> None:
        """Add Gaussian noise of standard deviation multiplier x clip to the sum of clipped gradients."""
        for parameter in self.params:
            summed = parameter.summed_grad
            # Opacus guards a sum against a second use; overriding this method must not lose that.
            if hasattr(summed, "_processed"):
                raise RuntimeError("a noised gradient must not be used twice: call zero_grad() after each step")
            drawn = self._source.normal(summed.numel()).reshape(summed.shape)
            noise = torch.from_numpy(drawn * (self.noise_multiplier * self.max_grad_norm))
            # Added in float64 and rounded once.
            parameter.grad = (summed.double() + noise).to(summed.dtype).view_as(parameter)
            summed._processed = True


def patient_rows(inputs: NDArray[np.float32], labels: NDArray[np.int64], patients: NDArray[np.int64]) -> list[Rows]:
    """Gather images into one row for each patient, in groups of like size so that little is padding.

    Parameters
    ----------
    inputs : ndarray of float32, shape (images, views, ...)
        Views of one image share its weight.
    labels, patients : ndarray of int, shape (images,)

    Returns
    -------
    list of Rows
        Groups of at most `PHYSICAL_ROWS` patients; all patients are in exactly one.
    """
    views = inputs.shape[1]
    order = np.argsort(patients, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(patients[order])) + 1)
    members.sort(key=len)
    groups = []
    for start in range(0, len(members), PHYSICAL_ROWS):
        part = members[start : start + PHYSICAL_ROWS]
        width = max(len(images) for images in part) * views
        rows = np.zeros((len(part), width, *inputs.shape[2:]), dtype=np.float32)
        weights = np.zeros((len(part), width), dtype=np.float32)
        for place, images in enumerate(part):
            used = len(images) * views
            rows[place, :used] = inputs[images].reshape(used, *inputs.shape[2:])
            weights[place, :used] = 1.0 / used
        targets = torch.from_numpy(labels[[images[0] for images in part]])
        groups.append(Rows(torch.from_numpy(rows), targets, torch.from_numpy(weights)))
    return groups


def patient_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each image, weighted within its patient and SUMMED over patients.

    Summed, because a mean over the drawn rows would divide by a number that depends on the data.

    Parameters
    ----------
    logits : Tensor, shape (patients, images, 3)
    labels : Tensor, shape (patients,)
    weights : Tensor, shape (patients, images)
    """
    spread = labels[:, None].expand(logits.shape[:2])
    return (
        functional.cross_entropy(logits.flatten(0, 1), spread.flatten(), reduction="none") * weights.flatten()
    ).sum()


def descend(
    module: nn.Linear,
    groups: Sequence[Rows],
    recipe: Recipe,
    noise_multiplier: float,
    source: SecureSource,
    done: Callable[[int, int], None] = lambda step, steps: None,
) -> Tensor:
    """Minimise the mean loss over patients by DP-SGD and return the averaged weights.

    Parameters
    ----------
    module : Linear
        Holds the start; its output, less a last dimension of 1, is the logits.
    groups : sequence of Rows
        All patients of one partition.
    recipe : Recipe
    noise_multiplier : float
        Standard deviation of the noise over the clip, on the sum of a step's gradients.
    source : SecureSource
        Of the noise and of the lottery.
    done : callable
        Called with (steps done, of all).

    Returns
    -------
    Tensor of float32
        Like `module.weight`.
    """
    count = sum(len(group.labels) for group in groups)
    wrapped = GradSampleModule(module, loss_reduction="sum")
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum),
        source,
        noise_multiplier=noise_multiplier,
        max_grad_norm=recipe.clip,
        # The EXPECTED size, a public constant; the drawn size would be data.
        expected_batch_size=recipe.sampling_rate * count,
        loss_reduction="mean",
    )
    first = recipe.steps - max(1, round(recipe.averaged * recipe.steps))
    total = torch.zeros_like(module.weight, dtype=torch.float64)
    for step in range(recipe.steps):
        for place, group in enumerate(groups):
            drawn = torch.from_numpy(source.coins(len(group.labels), recipe.sampling_rate))
            optimizer.zero_grad()
            logits = wrapped(group.inputs[drawn]).squeeze(-1)
            with warnings.catch_warnings():
                # Opacus hooks a layer whose inputs are data and need no gradient; torch remarks on it.
                warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
                torch.autograd.backward(patient_loss(logits, group.labels[drawn], group.weights[drawn]))
            # Clipped sums add up over the groups; noise comes once, with the last, also where no patient was drawn.
            optimizer.signal_skip_step(do_skip=place < len(groups) - 1)
            optimizer.step()
        if step >= first:
            total += module.weight.detach()
        done(step + 1, recipe.steps)
    wrapped.remove_hooks()
    return (total / (recipe.steps - first)).float()


def release_mean(
    vectors: NDArray[np.float64], clip: float, noise_multiplier: float, source: SecureSource
) -> NDArray[np.float64]:
    """Release the mean of one vector for each patient by the Gaussian mechanism (Dwork & Roth 2014, appendix A).

    Parameters
    ----------
    vectors : ndarray of float64, shape (patients, n)
        Longer ones are clipped to norm `clip`. The number of patients counts as public.
    clip, noise_multiplier : float
        As in `Recipe` and `descend`.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    clipped = vectors * np.minimum(1.0, clip / np.maximum(length, 1e-12))
    noise = source.normal(vectors.shape[1]) * (noise_multiplier * clip)
    released: NDArray[np.float64] = (clipped.sum(0) + noise) / len(vectors)
    return released


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Upper bound of epsilon of everything that the mechanisms published (Gopi et al. 2021, arXiv 2106.02848).

    Mechanisms on one partition compose; partitions share no patient, so over partitions the largest counts (parallel
    composition, McSherry 2009).
    """
    bounds = []
    for partition in sorted({mechanism.partition for mechanism in mechanisms}):
        accountant = PRVAccountant()
        accountant.history = [
            (mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps)
            for mechanism in mechanisms
            if mechanism.partition == partition
        ]
        # At sampling rate 1 Opacus takes the logarithm of 1 - q = 0, whose limit, minus infinity, is what it needs.
        # Its RDP bound, whose advice is silenced, serves only to size the grid.
        with np.errstate(divide="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Optimal order is the largest alpha", UserWarning)
            bounds.append(float(accountant.get_epsilon(delta=delta)))
    return max(bounds)


def noise_for(target: float, delta: float, mechanism: Mechanism, beside: Sequence[Mechanism] = ()) -> Mechanism:
    """Give a mechanism the least noise that keeps its partition within `target`.

    Parameters
    ----------
    target, delta : float
        The budget.
    mechanism : Mechanism
        Its noise multiplier is not read.
    beside : sequence of Mechanism
        What else runs on the same partition.

    Raises
    ------
    ConfigError
        Delta is so large that publishing one patient whole would satisfy it, or the budget cannot be met.
    """
    if delta >= 1 / mechanism.patients:
        raise ConfigError(f"delta must be below 1 / {mechanism.patients} patients", code="delta")

    def within(multiplier: float) -> bool:
        tried = mechanism.model_copy(update={"noise_multiplier": multiplier})
        return epsilon([tried, *beside], delta) <= target

    # Near epsilon 3 already: far below it the accountant's grid, and its time, grow without bound.
    low = high = max(0.5, mechanism.sampling_rate * mechanism.steps**0.5)
    while not within(high):
        low, high = high, high * 2
        if high > 1e5:
            raise ConfigError(f"epsilon {target} cannot be met with these mechanisms", code="epsilon")
    while low == high or within(low):
        low, high = low / 2, min(low, high)
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return mechanism.model_copy(update={"noise_multiplier": round(high + 5e-4, 3)})
