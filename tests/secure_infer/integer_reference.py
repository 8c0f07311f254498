"""Programs in Python's integers, to compare what the parties compute with."""

from __future__ import annotations

import itertools

import numpy as np

from secure_infer.program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    Program,
    ReluLayer,
    SliceLayer,
    SumPoolLayer,
    TruncationLayer,
    shapes_of,
    sources,
)
from secure_infer.protocol.plan import Plan


def windows(values, layer, channel):
    """Every window of a padded channel: row, column, and its values as (row in kernel, column in kernel, value)."""
    (rows, columns), (down, right), (top, left) = layer.kernel, layer.stride, layer.padding
    height, width = len(values[channel]), len(values[channel][0])
    for y in range((height + 2 * top - rows) // down + 1):
        for x in range((width + 2 * left - columns) // right + 1):
            inside = [
                (i, j, values[channel][y * down + i - top][x * right + j - left])
                for i, j in itertools.product(range(rows), range(columns))
                if 0 <= y * down + i - top < height and 0 <= x * right + j - left < width
            ]
            yield y, x, inside


def exact(made: Program, weights, image: np.ndarray, masks: dict[str, np.ndarray]) -> np.ndarray:
    """The slow obvious way: fixed-point numbers as Python integers, without any ring.

    A gate rounds up when the bits it drops carry under its mask: (y + R mod 2^t) >> t.
    """
    plan, shapes = Plan(made), shapes_of(made)
    encode = lambda array, bits: [round(v * 2**bits) for v in array.reshape(-1).tolist()]  # noqa: E731
    found = {INPUT: np.array(encode(image, made.fraction_bits), object).reshape(made.input_shape)}
    for layer in made.layers:
        given = [found[one] for one in sources(layer)]
        result = np.zeros(shapes[layer.name], object)
        if isinstance(layer, ConvolutionLayer | DenseLayer):
            weight = weights[f"{layer.name}.weight"]
            rounded = np.array(encode(weight, made.weight_fraction_bits), object).reshape(weight.shape)
            bias = encode(weights[f"{layer.name}.bias"], plan.fractions[layer.name])
            if isinstance(layer, DenseLayer):
                rounded = rounded[..., None, None]
                layer = ConvolutionLayer(  # noqa: PLW2901
                    name=layer.name, source=layer.source, out_channels=layer.out_features, kernel=(1, 1)
                )
            per_group = layer.out_channels // layer.groups
            for out in range(layer.out_channels):
                result[out] += bias[out]
                for k in range(rounded.shape[1]):
                    channel = out // per_group * rounded.shape[1] + k
                    for y, x, inside in windows(given[0], layer, channel):
                        result[out, y, x] += sum(rounded[out, k, i, j] * value for i, j, value in inside)
        elif isinstance(layer, ReluLayer | TruncationLayer):
            result = (given[0] + masks[layer.name].astype(object) % 2**layer.shift) // 2**layer.shift
            if isinstance(layer, ReluLayer):
                result = np.maximum(result, 0)
                if layer.ceiling is not None:
                    result = np.minimum(result, round(layer.ceiling * 2 ** plan.fractions[layer.name]))
        elif isinstance(layer, AdditionLayer):
            sign = -1 if layer.subtract else 1
            result = given[0] * 2**layer.first_shift + sign * given[1] * 2**layer.second_shift
        elif isinstance(layer, SliceLayer):
            for channel, row, column in np.ndindex(result.shape):
                at = [row, column]
                along = layer.axis == "columns"
                last = given[0].shape[1 + along] - 1
                at[along] = min(max(at[along] * layer.step + layer.offset, 0), last)
                result[channel, row, column] = given[0][channel, at[0], at[1]]
        elif isinstance(layer, SumPoolLayer):
            for channel in range(len(given[0])):
                for y, x, inside in windows(given[0], layer, channel):
                    result[channel, y, x] = sum(value for _, _, value in inside)
        elif isinstance(layer, FlattenLayer):
            result = given[0].reshape(-1, 1, 1)
        else:
            limits = encode(np.array(layer.limits), plan.fractions[layer.name])
            sums = [one.sum() - limit for one, limit in zip(given, limits, strict=True)]
            result = np.array(sums, object).reshape(-1, 1, 1)
        found[layer.name] = result
    opened = found[made.output]
    return (opened / 2 ** plan.fractions[made.output]).astype(np.float64)
