"""Differentially private training of any network: DP-SGD (Abadi et al. 2016, arXiv 1607.00133) with Opacus.

The unit of privacy is the PATIENT: all images of a child make one row, whose loss is the mean over the images, so the
gradient that is clipped is the child's and not the image's. Two sets of data differ by one whole child.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional

from dicom_node.core.errors import ConfigError

from .depthwise import depthwise_gradients, is_depthwise
from .ghost import LinearGradients, linear_gradients, linear_head
from .randomness import SecureSource

#: Images whose gradients are held at once; clipping is per patient, so this changes memory and never the result.
AT_ONCE = 2048
#: The same where a gradient is formed for each patient of a linear head: few enough for the processor's cache.
GRADIENTS_AT_ONCE = 512
#: Of each patient, whether it takes part in a step.
Drawn = NDArray[np.bool_]
#: From outputs, labels and weights to a number.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    """One row for each patient: one or several images that stand together.

    Attributes
    ----------
    inputs : Tensor, shape (images, ...)
        What the module takes, or what `descend` is told to make that of.
    labels : Tensor of int64, shape (images,)
        Or what else the loss takes, image by image.
    patients : Tensor of int64, shape (images,)
        Number of each image's patient, ascending from 0 without gaps.
    weights : Tensor of float32, shape (images,)
        1 / (images of the patient): each patient's weights sum to 1.
    """

    inputs: Tensor
    labels: Tensor
    patients: Tensor
    weights: Tensor

    @property
    def count(self) -> int:
        """Number of patients."""
        return int(self.patients[-1]) + 1

    def batches(self, drawn: NDArray[np.bool_], at_once: int) -> Iterator[Tensor]:
        """Divide the images of the drawn patients.

        Parameters
        ----------
        drawn : ndarray of bool, shape (patients,)
        at_once : int
            Images; a patient who has more is not divided.

        Yields
        ------
        Tensor of int64, shape (images of the batch,)
            Where they stand; all images of each patient are in one batch. Empty where nobody was drawn.
        """
        sizes = torch.bincount(self.patients).tolist()
        ends = np.cumsum(sizes)
        batch: list[int] = []
        for patient in np.flatnonzero(drawn):
            if batch and len(batch) + sizes[patient] > at_once:
                yield torch.tensor(batch)
                batch = []
            batch.extend(range(ends[patient] - sizes[patient], ends[patient]))
        yield torch.tensor(batch, dtype=torch.int64)


def _convolution_gradients(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    way = depthwise_gradients if is_depthwise(layer) else GradSampleModule.GRAD_SAMPLERS[nn.Conv2d]
    found: dict[Tensor, Tensor] = way(layer, activations, backprops)
    return found


class ImageGradients(GradSampleModule):  # type: ignore[misc]  # opacus is untyped
    """Opacus's wrapper, which forms the gradients of single images, with a short way through depthwise convolutions."""

    # A dictionary of our own: Opacus's is the whole process's.
    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {
        **GradSampleModule.GRAD_SAMPLERS,
        nn.Conv2d: _convolution_gradients,
    }


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

    def step_on(self, summed: Tensor) -> None:
        """Noise a sum of clipped gradients of the only parameter and take the step."""
        (parameter,) = self.params
        parameter.summed_grad = summed
        self.add_noise()
        parameter.grad /= self.expected_batch_size
        self.original_optimizer.step()


def patient_rows(inputs: NDArray[Any], labels: NDArray[np.int64], patients: NDArray[np.int64]) -> Rows:
    """Gather images into one row for each patient.

    Parameters
    ----------
    inputs : ndarray, shape (images, views, ...)
        Views of one image share its weight.
    labels : ndarray of int, shape (images, ...)
    patients : ndarray of int, shape (images,)
    """
    views = inputs.shape[1]
    order = np.argsort(patients, kind="stable")
    _, owner, sizes = np.unique(patients[order], return_inverse=True, return_counts=True)
    owner = np.repeat(owner, views)
    return Rows(
        torch.from_numpy(inputs[order].reshape(-1, *inputs.shape[2:])),
        torch.from_numpy(np.repeat(labels[order], views, axis=0)),
        torch.from_numpy(owner),
        torch.from_numpy(1.0 / (views * sizes[owner])).float(),
    )


def patient_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each image, weighted within its patient and SUMMED over patients.

    Summed, because a mean over the drawn rows would divide by a number that depends on the data.

    Parameters
    ----------
    logits : Tensor, shape (images, 3), less last dimensions of 1
    labels, weights : Tensor, shape (images,)
    """
    return (functional.cross_entropy(logits.flatten(1), labels, reduction="none") * weights).sum()


def require_private(module: nn.Module) -> None:
    """Make sure that one patient's gradient depends on that patient alone.

    Raises
    ------
    ConfigError
        A layer mixes the images of a batch, as BatchNorm does (``mixes-patients``).
    """
    faults = ModuleValidator.validate(module, strict=False)
    if faults:
        raise ConfigError(
            f"this network cannot be trained privately, fold or replace its normalisation: {faults[0]}",
            code="mixes-patients",
        )


def _patient_gradients(
    wrapped: ImageGradients, rows: Rows, index: Tensor, prepare: Callable[[Tensor], Tensor], loss: Loss
) -> None:
    """Leave one gradient for each patient in `grad_sample` of every parameter, shape (patients, ...)."""
    parameters = [one for one in wrapped.parameters() if one.requires_grad]
    if not len(index):
        for parameter in parameters:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        return
    found = wrapped(prepare(rows.inputs[index]))
    with warnings.catch_warnings():
        # Opacus hooks a layer whose inputs are data and need no gradient; torch remarks on it.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        torch.autograd.backward(loss(found, rows.labels[index], rows.weights[index]))
    present, owner = torch.unique_consecutive(rows.patients[index], return_inverse=True)
    for parameter in parameters:
        # Opacus gives one gradient for each IMAGE; the patient's is their sum, and only that may be clipped.
        summed = parameter.new_zeros((len(present), *parameter.shape))
        parameter.grad_sample = summed.index_add_(0, owner, parameter.grad_sample)


@contextmanager
def _in_closed_form(module: nn.Module, rows: Rows, optimizer: SecureDPOptimizer) -> Iterator[Callable[[Drawn], None]]:
    """Give what takes one noised step of a linear head; see `LinearGradients`."""
    (weight,) = module.parameters()
    gradients = LinearGradients(rows.inputs, rows.labels, rows.patients, rows.weights, len(weight))

    def step_on(drawn: Drawn) -> None:
        optimizer.step_on(gradients.clipped_sum(weight.detach(), optimizer.max_grad_norm, torch.from_numpy(drawn)))

    yield step_on


@contextmanager
def _by_samples(
    module: nn.Module,
    rows: Rows,
    optimizer: SecureDPOptimizer,
    prepare: Callable[[Tensor], Tensor],
    at_once: int,
    loss: Loss,
) -> Iterator[Callable[[Drawn], None]]:
    """Give what takes one noised step of any module, from a gradient for each image."""
    wrapped = ImageGradients(module, loss_reduction="sum")

    def step_on(drawn: Drawn) -> None:
        batches = list(rows.batches(drawn, at_once))
        for place, index in enumerate(batches):
            optimizer.zero_grad()
            _patient_gradients(wrapped, rows, index, prepare, loss)
            # Clipped sums add up over the batches; noise comes once, with the last, also where no patient was drawn.
            optimizer.signal_skip_step(do_skip=place < len(batches) - 1)
            optimizer.step()

    yield step_on
    wrapped.remove_hooks()


def patient_gradients(
    weight: Tensor, rows: Rows, drawn: Drawn, at_once: int = GRADIENTS_AT_ONCE
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield the gradients of some patients' losses, before any clipping or noise: they stay where the data are.

    Parameters
    ----------
    weight : Tensor of float32, shape (classes, features)
        Of a head without a bias.
    rows : Rows
        Of vectors.
    drawn : ndarray of bool, shape (patients,)
    at_once : int
        As for `Rows.batches`.

    Yields
    ------
    numbers : ndarray of int64, shape (patients of the batch,)
    gradients : ndarray of float32, shape (patients of the batch, classes * features)
    """
    for index in rows.batches(drawn, at_once):
        numbers, owner = torch.unique_consecutive(rows.patients[index], return_inverse=True)
        found = linear_gradients(weight, rows.inputs[index], rows.labels[index], rows.weights[index], owner)
        yield numbers.numpy(), found.flatten(1).numpy()


def descend(
    module: nn.Module,
    rows: Rows,
    recipe: Recipe,
    noise_multiplier: float,
    source: SecureSource,
    done: Callable[[int, int], None] = lambda step, steps: None,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    at_once: int = AT_ONCE,
    patients: int | None = None,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """Minimise the mean loss over patients by DP-SGD and return the averaged parameters.

    Parameters
    ----------
    module : Module
        Holds the start; from (images, ...) to logits (images, 3), less a last dimension of 1.
    rows : Rows
        All patients of one partition.
    recipe : Recipe
    noise_multiplier : float
        Standard deviation of the noise over the clip, on the sum of a step's gradients.
    source : SecureSource
        Of the noise and of the lottery.
    done : callable
        Called with (steps done, of all).
    prepare : callable
        From some of `rows.inputs` to what the module takes, image by image; None where they are that.
    at_once : int
        Images whose gradients are held at once: each takes as much memory as the module.
    patients : int, optional
        What the sum over patients is divided by; their number, which then counts as public, where absent.
    loss : callable, optional
        From the module's outputs, `Rows.labels` and `Rows.weights` to a loss that is SUMMED over images, each with its
        weight and none with another's numbers; `patient_loss` where absent.

    Returns
    -------
    dict of str to Tensor of float32
        Like the module's trainable parameters, by name.

    Raises
    ------
    ConfigError
        See `require_private`.
    """
    require_private(module)
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(module.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum),
        source,
        noise_multiplier=noise_multiplier,
        max_grad_norm=recipe.clip,
        # The EXPECTED size, a public constant; the drawn size would be data.
        expected_batch_size=recipe.sampling_rate * (rows.count if patients is None else patients),
        loss_reduction="mean",
    )
    first = recipe.steps - max(1, round(recipe.averaged * recipe.steps))
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
    total = {name: torch.zeros_like(one, dtype=torch.float64) for name, one in trained.items()}
    if prepare is None and loss is None and linear_head(module, rows.inputs):
        way = _in_closed_form(module, rows, optimizer)
    else:
        way = _by_samples(
            module.train(), rows, optimizer, prepare or (lambda inputs: inputs), at_once, loss or patient_loss
        )
    with way as step_on:
        for step in range(recipe.steps):
            step_on(source.coins(rows.count, recipe.sampling_rate))
            if step >= first:
                for name, one in trained.items():
                    total[name] += one.detach()
            done(step + 1, recipe.steps)
    return {name: (one / (recipe.steps - first)).float() for name, one in total.items()}


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
    return release_sum(vectors, clip, noise_multiplier, source) / len(vectors)


def release_sum(
    vectors: NDArray[np.float64], clip: float, noise_multiplier: float, source: SecureSource
) -> NDArray[np.float64]:
    """Release the sum of one vector for each patient; see `release_mean`."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    clipped = vectors * np.minimum(1.0, clip / np.maximum(length, 1e-12))
    released: NDArray[np.float64] = clipped.sum(0) + source.normal(vectors.shape[1]) * (noise_multiplier * clip)
    return released
