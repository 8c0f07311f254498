"""Compiles a trained network to a public program and its private weights (torch.fx; BatchNorm folded into weights).

Supported are Conv2d (zero padding; dense, depthwise, strided), Linear, BatchNorm2d after a convolution, ReLU and ReLU6
(or clamp to 0..6), MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), Flatten, Dropout and Identity, and additions. Everything
else is refused by name. Where weights follow weights (linear bottlenecks), a truncation is put between them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dicom_node.core.errors import ConfigError

from .bounds import narrowed, prove
from .clear import evaluate
from .lowering import Lowering, unsupported
from .networks import plain
from .program import INPUT, GuardLayer, Program, ReluLayer
from .protocol.plan import Plan

#: Fractional bits of activations and weights, by ring: those of a 64-bit ring leave 20 bits for the integral part.
FRACTION_BITS = {64: (14, 26), 32: (10, 10)}
#: How far beyond the calibration images an input and, where there is a guard, the sums behind ReLUs may go.
MARGIN = 8.0
#: The same for the inputs of a 32-bit ring, which has no bits to spare.
NARROW_MARGIN = 1.25


@dataclass
class Compiled:
    """A network as `ModelCard` and `ModelStore` take it."""

    program: Program
    weights: dict[str, NDArray[np.float64]]


def compile_network(
    network: nn.Module,
    calibration: NDArray[np.float64],
    ring_bits: int = 64,
    output_fraction_bits: int | None = None,
) -> Compiled:
    """Compile a network for evaluation under encryption.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode; takes (batch, channels, rows, columns), gives (batch, classes).
    calibration : ndarray of float64, shape (images, channels, rows, columns)
        Public images from which the bounds follow: up to `MARGIN` times their values and sums are accepted.
    ring_bits : int
        64, or 32: half the bytes and fewer bits, for small networks. There, an image must also stay within
        `NARROW_MARGIN` times the largest Euclidean norm of the calibration's, which the hospital checks.
    output_fraction_bits : int, optional
        Fractional bits of the outputs that the hospital learns, against extraction of the weights; all by default.
        Outputs are rounded up or down by chance, with the right mean.

    Raises
    ------
    ConfigError
        A module or function is not supported (``unsupported-module``), shapes do not fit (``program-shape``), or values
        of some image could leave the ring (``ring-overflow``).
    """
    if network.training:
        raise ConfigError("compile the network in evaluation mode", code="unsupported-module")
    fraction_bits, weight_bits = FRACTION_BITS[ring_bits]
    traced = fx.symbolic_trace(plain(network))
    _folded(traced)
    _pooled_first(traced)
    shape = calibration.shape[1:]
    lowering = Lowering(weight_bits, {INPUT: (shape[0], shape[1], shape[2])})
    output = _walk(traced, lowering)
    if lowering.gains[output] != 1.0 or not lowering.wide[output]:
        raise ConfigError("the network must end in weights", code="unsupported-module")
    if output_fraction_bits is not None:
        if not 0 <= output_fraction_bits < fraction_bits + weight_bits:
            raise ConfigError("the outputs have no such number of fractional bits", code="unsupported-module")
        output = lowering.round(output, fraction_bits + weight_bits - output_fraction_bits)
    margin = NARROW_MARGIN if ring_bits == 32 else MARGIN
    norms = np.linalg.norm(calibration.reshape(len(calibration), -1), axis=1)
    program = Program(
        ring_bits=64 if ring_bits == 64 else 32,
        input_shape=lowering.shapes[INPUT],
        fraction_bits=fraction_bits,
        weight_fraction_bits=weight_bits,
        input_bound=margin * float(np.abs(calibration).max()),
        input_norm=margin * float(norms.max()) if ring_bits == 32 else None,
        output_bound=1.0,
        output=output,
        layers=tuple(lowering.layers),
    )
    return _bounded(Compiled(program, lowering.weights), calibration, lowering.maxima)


def _folded(traced: fx.GraphModule) -> None:
    """Fold every BatchNorm into the convolution before it."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or len(before.users) != 1:
            raise unsupported(str(node.target), "a BatchNorm2d must follow a convolution")
        traced.add_submodule(str(before.target), fuse_conv_bn_eval(convolution, modules[node.target]))
        modules[str(before.target)] = traced.get_submodule(str(before.target))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def _pooled_first(traced: fx.GraphModule) -> None:
    """Take each max-pool before the ReLU in front of it: the same values, of which a quarter come to the ReLU."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.MaxPool2d):
            continue
        before = node.args[0]
        if _activation(before, modules) is not None and len(before.users) == 1:
            node.replace_all_uses_with(before)
            node.replace_input_with(before, before.args[0])
            before.replace_input_with(before.args[0], node)
            node.append(before)


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """Return the module that an activation is, however it is called; None for anything else."""
    if node.op == "call_module" and type(modules[str(node.target)]) in (nn.ReLU, nn.ReLU6):
        return modules[str(node.target)]
    if node.target in (torch.relu, "relu", "relu_", functional.relu):
        return nn.ReLU()
    if node.target is functional.relu6:
        return nn.ReLU6()
    if node.target in (torch.clamp, "clamp"):
        given = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
        ends = (given.get("min"), given.get("max"))
        return nn.ReLU() if ends == (0, None) else nn.ReLU6() if ends == (0, 6) else None
    return None


def _walk(traced: fx.GraphModule, lowering: Lowering) -> str:
    names: dict[fx.Node, str] = {}
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        given = [names[one] for one in node.args if isinstance(one, fx.Node)] if node.op != "output" else []
        name = "l_" + node.name.lower()
        if node.op == "placeholder":
            names[node] = INPUT
        elif (activation := _activation(node, modules)) is not None:
            names[node] = lowering.module(name, given[0], activation)
        elif node.op == "call_module":
            names[node] = lowering.module(name, given[0], modules[str(node.target)])
        elif node.target in (operator.add, operator.iadd, torch.add) and len(given) == 2 and not node.kwargs:
            names[node] = lowering.sum(name, *given)
        elif node.target in (torch.flatten, "flatten") and node.args[1:] == (1,):
            names[node] = lowering.module(name, given[0], nn.Flatten())
        elif node.op == "output" and isinstance(node.args[0], fx.Node):
            return names[node.args[0]]
        else:
            raise unsupported(node.name, f"{node.target} is not supported")
    raise ConfigError("the network has no output", code="unsupported-module")


def _bounded(compiled: Compiled, calibration: NDArray[np.float64], maxima: set[str]) -> Compiled:
    """Put a guard behind all ReLUs where the weights alone prove too little; bound the output by what is proven."""
    program = compiled.program
    gates = [layer for layer in program.layers if isinstance(layer, ReluLayer)]
    guarded = [gate.name for gate in gates if gate.ceiling is None and gate.name not in maxima]
    if not guarded:
        return _proven(compiled)
    if found := _provable(compiled):
        return found
    sums = dict.fromkeys(guarded, 0.0)
    for image in calibration:
        values = evaluate(program, compiled.weights, image)
        sums = {name: max(value, float(values[name].sum())) for name, value in sums.items()}
    # Where nothing but the output follows the last ReLU, it often needs no guard.
    found = _provable(_guarded(compiled, sums, guarded[:-1])) if len(guarded) > 1 else None
    return found or _proven(_guarded(compiled, sums, guarded))


def _guarded(compiled: Compiled, sums: Mapping[str, float], names: Sequence[str]) -> Compiled:
    """Put a guard at once behind the ReLUs that it adds up: its messages then go with those of the gates to come."""
    program = compiled.program
    limits = tuple(float(np.ceil(MARGIN * (sums[name] + 1.0))) for name in names)
    guard = GuardLayer(name="guarded_sums", sources=tuple(names), limits=limits)
    gate = ReluLayer(name="guard", source=guard.name, shift=program.weight_fraction_bits)
    place = next(place for place, layer in enumerate(program.layers, 1) if layer.name == names[-1])
    changes = {"layers": (*program.layers[:place], guard, gate, *program.layers[place:]), "guard": gate.name}
    return Compiled(_changed(program, changes), compiled.weights)


def _provable(compiled: Compiled) -> Compiled | None:
    try:
        return _proven(compiled)
    except ConfigError as error:
        if error.code != "ring-overflow":
            raise
        return None


def _proven(compiled: Compiled) -> Compiled:
    program = compiled.program
    plan = Plan(program)
    try:
        bounds = prove(plan, compiled.weights)
    except ConfigError as error:
        if error.code != "ring-overflow":
            raise
        advice = "take a ring of 64 bits" if program.ring_bits == 32 else "give smaller weights or inputs"
        raise ConfigError(f"{error}: {advice}", code=error.code) from error
    # Half of what the ring holds, at most: so much is left beyond which an opened output tells of a fault.
    most = 2.0 ** (program.ring_bits - 2 - plan.fractions[program.output])
    bound = min(bounds[program.output].largest, most * (1 - 2.0**-20))
    return Compiled(_changed(narrowed(plan, bounds), {"output_bound": bound}), compiled.weights)


def _changed(program: Program, changes: dict[str, Any]) -> Program:
    return Program.model_validate(program.model_dump() | changes)
