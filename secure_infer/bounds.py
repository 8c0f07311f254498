"""Proof, from the weights, that no value of a network can leave the ring unseen (interval and norm propagation).

Each tensor has a bound on its largest absolute value, on the sum of its absolute values and on its Euclidean norm.
A filter gives no more than the sum of its absolute weights times the first, its largest weight times the second, or its
own norm times the third (Cauchy-Schwarz); a whole layer stretches the norm by its matrix's largest singular value, once
for each time that its windows overlap. Without a guard the bounds grow with every layer, except at a ceiling. With one,
the sum over a ReLU's result is known to be within the guard's limit whenever the guard reads 0. By induction over the
layers, the first ReLU whose result exceeds its limit has an exact sum, so the guard sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot, inf, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError

from .program import (
    INPUT,
    AdditionLayer,
    DenseLayer,
    Gated,
    GuardLayer,
    Layer,
    Program,
    ReluLayer,
    SliceLayer,
    SumPoolLayer,
    Weighted,
    positions,
    sources,
)
from .protocol.kernels import DIGITS
from .protocol.plan import Plan


@dataclass(frozen=True)
class Bound:
    """What no tensor exceeds: largest absolute value, sum of absolute values, Euclidean norm."""

    largest: float
    total: float
    norm: float

    @classmethod
    def of(cls, size: int, largest: float, total: float = inf, norm: float = inf) -> Bound:
        """Let each of the three tighten the others, for a tensor of `size` values."""
        largest = min(largest, total, norm)
        total = min(total, largest * size, norm * sqrt(size))
        return cls(largest, total, min(norm, largest * sqrt(size), sqrt(largest * total)))

    def plus(self, other: Bound, size: int) -> Bound:
        """Bound a sum or difference."""
        return Bound.of(size, self.largest + other.largest, self.total + other.total, self.norm + other.norm)

    def times(self, largest: float, total: float, norm: float, size: int) -> Bound:
        """Bound what a linear layer gives that stretches the three by these factors."""
        return Bound.of(size, self.largest * largest, self.total * total, self.norm * norm)


def prove(plan: Plan, tensors: Mapping[str, NDArray[np.float64]]) -> dict[str, Bound]:
    """Check every gate, guard and output.

    Returns
    -------
    dict of str to Bound
        What holds for each tensor as long as the guard reads 0.

    Raises
    ------
    ConfigError
        Some input within the program's bounds could leave the ring unseen (``ring-overflow``), or a weight has the
        wrong shape (``program-shape``).
    """
    program, ring = plan.program, plan.ring
    limits = _limits(plan)
    unit, size = 2.0**-program.fraction_bits, prod(program.input_shape)
    norm = inf if program.input_norm is None else program.input_norm + unit * sqrt(size)
    found = {INPUT: Bound.of(size, program.input_bound + unit, norm=norm)}
    layers = {layer.name: layer for layer in program.layers}
    shapes = dict(zip(plan.weighted, plan.weight_shapes(), strict=True))
    for layer in program.layers:
        name, given = layer.name, sources(layer)
        size, before = prod(plan.shapes[name]), found[given[0]]
        unit = 2.0 ** -plan.fractions[name]
        if name in plan.weighted:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            if weight.shape != shapes[name] or bias.shape != (len(weight),):
                raise ConfigError(f"the weights of layer {name} have the wrong shape", code="program-shape")
            found[name] = _weighted(plan, plan.weighted[name], weight, np.abs(bias) + unit, before)
        elif isinstance(layer, Gated):
            ceiling = _ceiling(layer)
            _require(_fits(layer, plan.gates[name].bits, before, plan), name)
            after = before.plus(Bound.of(size, unit), size)
            if ceiling:
                after = Bound.of(size, min(after.largest, ceiling + unit), after.total, after.norm)
            if name in limits:  # the sum itself must be exact, however large the values that this layer is given
                _require(after.largest * size < 2.0 ** (ring.bits - 2 - plan.fractions[name]), name)
                after = Bound.of(size, after.largest, min(limits[name], after.total), after.norm)
            found[name] = after
        elif isinstance(layer, AdditionLayer):
            found[name] = before.plus(found[layer.second], size)
            if pair := _maximum(layer, layers):
                a, b = found[pair[0]], found[pair[1]]
                one = Bound.of(size, max(a.largest, b.largest), a.total + b.total, hypot(a.norm, b.norm))
                # What the gate's shift drops or adds.
                found[name] = one.plus(Bound.of(size, 2.0 ** -plan.fractions[pair[2]]), size)
        elif isinstance(layer, SumPoolLayer):
            kernel, overlap = prod(layer.kernel), _overlap(layer.kernel, layer.stride)
            found[name] = before.times(kernel, overlap, sqrt(kernel * overlap), size)
        elif isinstance(layer, SliceLayer):
            taken = int(np.bincount(positions(layer, plan.shapes[given[0]])).max())
            found[name] = before.times(1, taken, sqrt(taken), size)
        elif isinstance(layer, GuardLayer):
            sums = [found[one].largest * prod(plan.shapes[one]) for one in given]
            found[name] = Bound.of(size, max(limit + one for limit, one in zip(layer.limits, sums, strict=True)))
        else:
            found[name] = before
    fraction = plan.fractions[program.output]
    _require(found[program.output].largest < 2.0 ** (ring.bits - 1 - fraction), program.output)
    return found


def narrowed(plan: Plan, bounds: Mapping[str, Bound]) -> Program:
    """Let every ReLU open and compare no more bits than its input can have, which changes no result.

    Parameters
    ----------
    plan : Plan
    bounds : mapping of str to Bound
        From `prove`.

    Returns
    -------
    Program
        Bits are counted in whole digits: a public program tells no more of a bound than it must.
    """

    def layer_of(layer: Layer) -> Layer:
        if not isinstance(layer, ReluLayer):
            return layer
        widths = (layer.shift + 2 + compared for compared in DIGITS)
        enough = (one for one in widths if one < plan.ring.bits and _fits(layer, one, bounds[layer.source], plan))
        return layer.model_copy(update={"bits": next(enough, None)})

    return plan.program.model_copy(update={"layers": tuple(map(layer_of, plan.program.layers))})


def _ceiling(layer: Gated) -> float:
    return (isinstance(layer, ReluLayer) and layer.ceiling) or 0.0


def _fits(layer: Gated, bits: int, given: Bound, plan: Plan) -> bool:
    """Tell whether a gate of some bits can take what is given; just below 2^(bits-2), a ReLU may see a negative."""
    room = 2.0 ** (bits - 2) - 2.0**layer.shift
    return (given.largest + _ceiling(layer)) * 2.0 ** plan.fractions[layer.source] < room


def _weighted(
    plan: Plan, layer: Weighted, weight: NDArray[np.float64], bias: NDArray[np.float64], before: Bound
) -> Bound:
    step = 2.0**-plan.program.weight_fraction_bits
    rows = np.abs(weight.reshape(len(weight), -1)) + step
    one = np.minimum(rows.sum(axis=1) * before.largest, rows.max(axis=1) * before.total)
    one = np.minimum(one, np.linalg.norm(rows, axis=1) * before.norm) + bias
    shape = plan.shapes[layer.name]
    stretched = inf
    if plan.program.input_norm is not None:  # singular values take long, and serve nothing else
        across = sqrt(shape[1] * shape[2])
        stretched = _singular(layer, weight, step) * before.norm + across * float(np.linalg.norm(bias))
    return Bound.of(prod(shape), float(one.max()), norm=stretched)


def _singular(layer: Weighted, weight: NDArray[np.float64], step: float) -> float:
    """How much a layer can stretch a norm: its matrix's on a window, and each value stands in several windows."""
    if isinstance(layer, DenseLayer):
        return float(np.linalg.norm(weight, 2)) + step * sqrt(weight.size)
    groups = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    largest = max(float(np.linalg.norm(one, 2)) for one in groups) + step * sqrt(groups[0].size)
    return largest * sqrt(_overlap(layer.kernel, layer.stride))


def _overlap(kernel: tuple[int, int], stride: tuple[int, int]) -> int:
    """How many windows a value can stand in."""
    return prod(-(-side // step) for side, step in zip(kernel, stride, strict=True))


def _maximum(layer: AdditionLayer, layers: Mapping[str, Layer]) -> tuple[str, str, str] | None:
    """Recognise b + relu(a - b), the larger of a and b; the names of a, b and the ReLU."""
    relu = layers.get(layer.first)
    if layer.subtract or not isinstance(relu, ReluLayer) or relu.ceiling is not None:
        return None
    difference = layers.get(relu.source)
    if not isinstance(difference, AdditionLayer) or not difference.subtract or difference.second != layer.second:
        return None
    return difference.first, layer.second, relu.name


def _limits(plan: Plan) -> dict[str, float]:
    """Largest sum of each guarded ReLU's result that reads as 0."""
    program = plan.program
    if program.guard is None:
        return {}
    layers = {layer.name: layer for layer in program.layers}
    gate = layers[program.guard]
    assert isinstance(gate, ReluLayer)
    guard = layers.get(gate.source)
    if not isinstance(guard, GuardLayer) or not all(isinstance(layers.get(one), ReluLayer) for one in guard.sources):
        raise ConfigError("a guard adds up the results of ReLUs", code="program-shape")
    # The guard's own gate drops bits: a sum just above the limit may still read as 0.
    unseen = 2.0 ** (gate.shift - plan.fractions[guard.name])
    return {name: limit + unseen for name, limit in zip(guard.sources, guard.limits, strict=True)}


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ConfigError(f"values of layer {name} could wrap around the ring", code="ring-overflow")
