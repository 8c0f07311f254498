"""Proof, from the weights, that no value of a network can leave the ring unseen (interval bound propagation).

Each tensor has a bound on its largest absolute value and on the sum of its absolute values. Without a guard the largest
value grows by the sum of a filter's absolute weights with every layer. With one, the sum over a gate's result is known
to be within the guard's limit whenever the guard reads 0: then a filter gives no more than its largest weight times it.
By induction over the layers, the first gate whose result exceeds its limit has an exact sum, so the guard sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError

from ..program import INPUT, AdditionLayer, GuardLayer, ReluLayer, SumPoolLayer, sources
from .network_plan import NetworkPlan


def prove(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float64]]) -> None:
    """Check every gate, guard and output.

    Raises
    ------
    ConfigError
        Some input within the program's bound could leave the ring unseen (``ring-overflow``), or a weight has the wrong
        shape (``program-shape``).
    """
    program, ring = plan.program, plan.ring
    limits = _limits(plan)
    step = 2.0**-program.weight_fraction_bits
    first = program.input_bound + 2.0**-program.fraction_bits
    largest = {INPUT: first}
    total = {INPUT: first * prod(program.input_shape)}
    shapes = dict(zip(plan.weighted, plan.weight_shapes(), strict=True))
    for layer in program.layers:
        name, given = layer.name, sources(layer)
        size = prod(plan.shapes[name])
        top, whole = largest[given[0]], total[given[0]]
        capacity = 2.0 ** (ring.bits - 2 - plan.fractions[name])
        if name in plan.weighted:
            weight, bias = np.abs(tensors[f"{name}.weight"]) + step, np.abs(tensors[f"{name}.bias"]) + step
            if weight.shape != shapes[name] or bias.shape != (len(weight),):
                raise ConfigError(f"the weights of layer {name} have the wrong shape", code="program-shape")
            rows = weight.reshape(len(weight), -1)
            top = float((np.minimum(rows.sum(axis=1) * top, rows.max(axis=1) * whole) + bias).max())
            whole = top * size
        elif isinstance(layer, ReluLayer):
            # The values just below 2^(n-2) are the ones that a gate may take for negative.
            room = 2.0 ** (ring.bits - 2) - 2.0**layer.shift
            _require(top * 2.0 ** plan.fractions[given[0]] < room, name)
            top += 2.0 ** -plan.fractions[name]
            whole = min(limits.get(name, inf), top * size)
            _require(name not in limits or top * size < capacity, name)
            top = min(top, whole)
        elif isinstance(layer, AdditionLayer):
            top, whole = top + largest[layer.second], whole + total[layer.second]
        elif isinstance(layer, SumPoolLayer):
            top *= prod(layer.kernel)
            whole *= prod(-(-side // stride) for side, stride in zip(layer.kernel, layer.stride, strict=True))
        elif isinstance(layer, GuardLayer):
            top = max(
                limit + largest[one] * prod(plan.shapes[one]) for one, limit in zip(given, layer.limits, strict=True)
            )
            whole = top * size
        largest[name], total[name] = top, whole
    _require(largest[program.output] < 2.0 ** (ring.bits - 1 - plan.fractions[program.output]), program.output)


def _limits(plan: NetworkPlan) -> dict[str, float]:
    """Largest sum of each guarded gate's result that reads as 0."""
    program = plan.program
    if program.guard is None:
        return {}
    layers = {layer.name: layer for layer in program.layers}
    gate = layers[program.guard]
    assert isinstance(gate, ReluLayer)
    guard = layers.get(gate.source)
    if not isinstance(guard, GuardLayer) or not all(isinstance(layers[one], ReluLayer) for one in guard.sources):
        raise ConfigError("a guard adds up the results of gates", code="program-shape")
    # The guard's own gate drops bits: a sum just above the limit may still read as 0.
    unseen = 2.0 ** (gate.shift - plan.fractions[guard.name])
    return {name: limit + unseen for name, limit in zip(guard.sources, guard.limits, strict=True)}


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ConfigError(f"values of layer {name} could wrap around the ring", code="ring-overflow")
