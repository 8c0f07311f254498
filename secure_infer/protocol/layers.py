"""The linear layers of a network on shares: the same integer arithmetic at every role, modulo 2^bits, hence exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from ..program import AdditionLayer, DenseLayer, FlattenLayer, GuardLayer, NetworkLayer, SumPoolLayer, Weighted
from .ring import Words


def _signed(words: Words) -> torch.Tensor:
    # Two's complement wraps alike; torch has no arithmetic on unsigned words, and warns about read-only arrays.
    whole = np.require(words, requirements=["C", "W"])
    return torch.from_numpy(whole.view(f"i{words.itemsize}"))


def weigh(layer: Weighted, values: Words, weight: Words) -> Words:
    """Apply a convolution, shape (channels, rows, columns) to the same, or a dense layer."""
    if isinstance(layer, DenseLayer):
        return (weight @ values.reshape(-1)).reshape(-1, 1, 1)
    result = functional.conv2d(
        _signed(values)[None], _signed(weight), stride=layer.stride, padding=layer.padding, groups=layer.groups
    )
    convolved: Words = result[0].numpy().view(f"u{values.itemsize}")
    return convolved


def local(layer: NetworkLayer, given: Sequence[Words]) -> Words:
    """Apply a layer without weights that every party computes on its own share; constants are left out."""
    if isinstance(layer, AdditionLayer):
        kind = given[0].dtype.type
        return (given[0] << kind(layer.first_shift)) + (given[1] << kind(layer.second_shift))
    if isinstance(layer, FlattenLayer):
        return given[0].reshape(-1, 1, 1)
    if isinstance(layer, GuardLayer):
        return np.array([one.sum(dtype=one.dtype) for one in given]).reshape(-1, 1, 1)
    assert isinstance(layer, SumPoolLayer)
    (rows, columns), (down, right) = layer.kernel, layer.stride
    padded = np.pad(given[0], ((0, 0), *((margin, margin) for margin in layer.padding)))
    _, height, width = padded.shape
    last_row, last_column = height - rows + 1, width - columns + 1
    found = np.zeros_like(padded[:, :last_row:down, :last_column:right])
    for row in range(rows):
        for column in range(columns):
            found += padded[:, row : row + last_row : down, column : column + last_column : right]
    return found
