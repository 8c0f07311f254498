"""The linear layers of a network on shares: the same integer arithmetic at every role, modulo 2^bits, hence exact."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..program import (
    AdditionLayer,
    DenseLayer,
    FlattenLayer,
    GuardLayer,
    Layer,
    Shape,
    SliceLayer,
    SumPoolLayer,
    Weighted,
    positions,
    shape_after,
)
from . import kernels
from .ring import Words


def weigh(layer: Weighted, values: Words, weight: Words) -> Words:
    """Apply a convolution, shape (channels, rows, columns) to the same, or a dense layer."""
    if isinstance(layer, DenseLayer):
        return (weight @ values.reshape(-1)).reshape(-1, 1, 1)
    out, rows, columns = shape_after(layer, [_shape(values)])
    groups, inner = layer.groups, prod(weight.shape[1:])
    # One group's windows at a time; a product of its own for each, since groups share no channels.
    windows = np.zeros((inner, rows, columns), values.dtype)
    found = np.zeros((groups, out // groups, rows * columns), values.dtype)
    matrices = np.ascontiguousarray(weight).reshape(groups, out // groups, inner)
    for group, part in enumerate(np.ascontiguousarray(values).reshape(groups, -1, *values.shape[1:])):
        kernels.unroll(part, layer.kernel, layer.stride, layer.padding, windows)
        kernels.multiply(matrices[group], windows.reshape(inner, -1), found[group])
    return found.reshape(out, rows, columns)


def _shape(values: Words) -> Shape:
    channels, rows, columns = values.shape
    return channels, rows, columns


def local(layer: Layer, given: Sequence[Words]) -> Words:
    """Apply a layer without weights that every party computes on its own share; constants are left out."""
    if isinstance(layer, AdditionLayer):
        kind = given[0].dtype.type
        first, second = given[0] << kind(layer.first_shift), given[1] << kind(layer.second_shift)
        return first - second if layer.subtract else first + second
    if isinstance(layer, SliceLayer):
        return given[0].take(positions(layer, _shape(given[0])), axis=1 if layer.axis == "rows" else 2)
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
