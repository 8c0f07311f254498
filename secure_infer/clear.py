"""The plaintext engine: the floating-point reference of what the encrypted engines compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from .engine import Inference, inference_of, input_of
from .program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    GuardLayer,
    Program,
    ReluLayer,
    SliceLayer,
    SumPoolLayer,
    positions,
    sources,
)

Tensors = Mapping[str, NDArray[np.float64]]


def evaluate(program: Program, weights: Tensors, image: NDArray[np.float64]) -> dict[str, torch.Tensor]:
    """Evaluate every layer in float64.

    Parameters
    ----------
    weights : mapping
        Tensors as in the model's weights file.
    image : ndarray of float64
        The program's input.

    Returns
    -------
    dict
        Every tensor by name, shape (1, channels, rows, columns). A guard gives sums less limits, a truncation its
        source: no bit is dropped.
    """
    found = {INPUT: torch.from_numpy(np.asarray(image, np.float64))[None]}
    private = {name: torch.from_numpy(np.asarray(tensor, np.float64)) for name, tensor in weights.items()}
    for layer in program.layers:
        given = [found[one] for one in sources(layer)]
        value = given[0]
        if isinstance(layer, ConvolutionLayer):
            weight, bias = private[f"{layer.name}.weight"], private[f"{layer.name}.bias"]
            value = functional.conv2d(value, weight, bias, layer.stride, layer.padding, groups=layer.groups)
        elif isinstance(layer, DenseLayer):
            weight, bias = private[f"{layer.name}.weight"], private[f"{layer.name}.bias"]
            value = functional.linear(value.flatten(1), weight, bias)[..., None, None]
        elif isinstance(layer, ReluLayer):
            value = value.clamp(0.0, layer.ceiling)
        elif isinstance(layer, AdditionLayer):  # the shifts only bring both to one scale
            value = given[0] - given[1] if layer.subtract else given[0] + given[1]
        elif isinstance(layer, SliceLayer):
            _, channels, rows, columns = value.shape
            taken = torch.from_numpy(positions(layer, (channels, rows, columns)))
            value = value.index_select(2 if layer.axis == "rows" else 3, taken)
        elif isinstance(layer, SumPoolLayer):
            value = functional.avg_pool2d(value, layer.kernel, layer.stride, layer.padding, divisor_override=1)
        elif isinstance(layer, FlattenLayer):
            value = value.reshape(1, -1, 1, 1)
        elif isinstance(layer, GuardLayer):
            sums = [one.sum() - limit for one, limit in zip(given, layer.limits, strict=True)]
            value = torch.stack(sums).reshape(1, -1, 1, 1)
        found[layer.name] = value
    return found


class PlaintextEngine:
    """Evaluates a program in the clear, only where the weights are; see `secure_infer.engine.Engine`.

    Parameters
    ----------
    program : Program
        The card's private part.
    weights : mapping of ndarray
        Its tensors, from `ModelStore.weights`.
    """

    name = "plaintext"

    def __init__(self, program: Program, weights: Tensors) -> None:
        self._program = program
        self._weights = weights

    def infer(self, features: NDArray[np.float64]) -> Inference:
        """Evaluate the features of one image; see `Engine.infer`."""
        found = evaluate(self._program, self._weights, input_of(self._program, features))
        outputs: NDArray[np.float64] = found[self._program.output].numpy()
        return inference_of(outputs[0])

    def close(self) -> None:
        """Do nothing: this engine holds nothing."""
