"""Compiles a trained network to a public program and its private weights (torch.fx; BatchNorm folded into weights).

Average pooling becomes a sum; what it should have been divided by, the *gain* of a tensor, is divided out of the
weights that follow. Supported are Conv2d (zero padding), Linear, BatchNorm2d after a convolution, ReLU, AvgPool2d and
AdaptiveAvgPool2d(1), Flatten, Dropout and Identity, and additions. Everything else is refused by name.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dicom_node.core.errors import ConfigError

from .clear import evaluate
from .networks import plain
from .program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    GuardLayer,
    Layer,
    Program,
    ReluLayer,
    SumPoolLayer,
    shape_after,
    sources,
)

#: Fractional bits of activations and weights, by ring: those of a 64-bit ring leave 20 bits for the integral part.
FRACTION_BITS = {64: (16, 26), 32: (10, 10)}
#: How far beyond what the calibration images give the guard lets sums and outputs go.
MARGIN = 8.0


@dataclass
class Compiled:
    """A network as `ModelCard` and `ModelStore` take it."""

    program: Program
    weights: dict[str, NDArray[np.float64]]


@dataclass
class _Builder:
    """Layers so far, and for each tensor its shape, its gain and whether it carries the weights' fraction, too."""

    shift: int
    shapes: dict[str, tuple[int, int, int]]
    layers: list[Layer] = field(default_factory=list)
    weights: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=lambda: {INPUT: 1.0})
    wide: dict[str, bool] = field(default_factory=lambda: {INPUT: False})

    def add(self, layer: Layer, *, gain: float, wide: bool) -> str:
        try:
            shape = shape_after(layer, [self.shapes[one] for one in sources(layer)])
        except ValueError as error:
            raise ConfigError(str(error), code="program-shape") from error
        self.layers.append(layer)
        self.shapes[layer.name], self.gains[layer.name], self.wide[layer.name] = shape, gain, wide
        return layer.name

    def weigh(self, layer: ConvolutionLayer | DenseLayer, module: nn.Conv2d | nn.Linear) -> str:
        weight = module.weight.detach().double().numpy() / self.gains[layer.source]
        bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
        # As the weights file holds them, so that every engine computes with the same numbers.
        self.weights[f"{layer.name}.weight"] = weight.astype(np.float32).astype(np.float64)
        self.weights[f"{layer.name}.bias"] = bias.astype(np.float32).astype(np.float64)
        return self.add(layer, gain=1.0, wide=True)

    def module(self, name: str, source: str, module: nn.Module) -> str:
        """Add one module; several kinds add nothing."""
        gain, wide = self.gains[source], self.wide[source]
        if isinstance(module, nn.Identity | nn.Dropout):
            return source
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and module.dilation == (1, 1):
            if isinstance(module.padding, str):
                raise ConfigError(f"{name}: give the padding as numbers", code="unsupported-module")
            convolution = ConvolutionLayer(
                name=name,
                source=source,
                out_channels=module.out_channels,
                kernel=_pair(module.kernel_size),
                stride=_pair(module.stride),
                padding=_pair(module.padding),
                groups=module.groups,
            )
            return self.weigh(convolution, module)
        if isinstance(module, nn.Linear):
            return self.weigh(DenseLayer(name=name, source=source, out_features=module.out_features), module)
        if type(module) is nn.ReLU:
            if not wide:
                raise ConfigError(f"{name}: a ReLU must follow weights", code="unsupported-module")
            return self.add(ReluLayer(name=name, source=source, shift=self.shift), gain=gain, wide=False)
        if isinstance(module, nn.AvgPool2d) and not module.ceil_mode and module.divisor_override is None:
            if not module.count_include_pad and _pair(module.padding) != (0, 0):
                raise ConfigError(f"{name}: pooling must count its padding", code="unsupported-module")
            return self._pool(name, source, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            _, rows, columns = self.shapes[source]
            return self._pool(name, source, (rows, columns), (1, 1), (0, 0))
        if isinstance(module, nn.Flatten) and module.start_dim == 1:
            return self.add(FlattenLayer(name=name, source=source), gain=gain, wide=wide)
        raise ConfigError(f"{name}: a {type(module).__name__} of this kind is not supported", code="unsupported-module")

    def _pool(
        self, name: str, source: str, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
    ) -> str:
        layer = SumPoolLayer(name=name, source=source, kernel=kernel, stride=stride, padding=padding)
        return self.add(layer, gain=self.gains[source] * prod(kernel), wide=self.wide[source])

    def _raise_gain(self, name: str, gain: float) -> None:
        used = any(name in sources(layer) for layer in self.layers)
        if gain > self.gains[name] and f"{name}.weight" in self.weights and not used:
            for part in (f"{name}.weight", f"{name}.bias"):
                scaled = self.weights[part] * (gain / self.gains[name])
                self.weights[part] = scaled.astype(np.float32).astype(np.float64)
            self.gains[name] = gain

    def sum(self, name: str, first: str, second: str) -> str:
        # Where one side was pooled, the weights on the other side can take its gain on.
        self._raise_gain(first, self.gains[second])
        self._raise_gain(second, self.gains[first])
        if self.gains[first] != self.gains[second]:
            raise ConfigError(
                f"{name}: a pooled tensor can only be added to one pooled alike", code="unsupported-module"
            )
        wide = self.wide[first] or self.wide[second]
        shifts = [self.shift if wide and not self.wide[one] else 0 for one in (first, second)]
        layer = AdditionLayer(name=name, first=first, second=second, first_shift=shifts[0], second_shift=shifts[1])
        return self.add(layer, gain=self.gains[first], wide=wide)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _folded(traced: fx.GraphModule) -> None:
    """Fold each BatchNorm into the convolution whose only user it is."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or len(before.users) != 1:
            raise ConfigError(f"{node.target}: a BatchNorm2d must follow a convolution", code="unsupported-module")
        traced.add_submodule(str(before.target), fuse_conv_bn_eval(convolution, modules[node.target]))
        modules[str(before.target)] = traced.get_submodule(str(before.target))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def compile_network(network: nn.Module, calibration: NDArray[np.float64], ring_bits: int = 64) -> Compiled:
    """Compile a network for evaluation under encryption.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode; takes (batch, channels, rows, columns), gives (batch, classes).
    calibration : ndarray of float64, shape (images, channels, rows, columns)
        Public images from which the bounds follow: inputs and outputs of up to `MARGIN` times theirs are accepted.
    ring_bits : int
        64, or 32: faster, with fewer bits, and refused by party 1 wherever it cannot prove that nothing wraps.

    Raises
    ------
    ConfigError
        A module or function is not supported (``unsupported-module``), or shapes do not fit (``program-shape``).
    """
    if network.training:
        raise ConfigError("compile the network in evaluation mode", code="unsupported-module")
    fraction_bits, weight_bits = FRACTION_BITS[ring_bits]
    traced = fx.symbolic_trace(plain(network))
    _folded(traced)
    shape = calibration.shape[1:]
    builder = _Builder(weight_bits, {INPUT: (shape[0], shape[1], shape[2])})
    output = _walk(traced, builder)
    if builder.gains[output] != 1.0:
        raise ConfigError("the network must end in weights", code="unsupported-module")
    bound = MARGIN * float(np.abs(calibration).max())
    program = Program(
        ring_bits=64 if ring_bits == 64 else 32,
        input_shape=builder.shapes[INPUT],
        fraction_bits=fraction_bits,
        weight_fraction_bits=weight_bits,
        input_bound=bound,
        output_bound=1.0,
        output=output,
        layers=tuple(builder.layers),
    )
    return _guarded(Compiled(program, builder.weights), calibration)


def _walk(traced: fx.GraphModule, builder: _Builder) -> str:
    names: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        given = [names[one] for one in node.args if isinstance(one, fx.Node)] if node.op != "output" else []
        name = "l_" + node.name.lower()
        if node.op == "placeholder":
            names[node] = INPUT
        elif node.op == "call_module":
            names[node] = builder.module(name, given[0], traced.get_submodule(str(node.target)))
        elif node.target in (operator.add, operator.iadd, torch.add) and len(given) == 2 and not node.kwargs:
            names[node] = builder.sum(name, *given)
        elif node.target in (torch.flatten, "flatten") and node.args[1:] == (1,):
            names[node] = builder.module(name, given[0], nn.Flatten())
        elif node.target in (torch.relu, "relu", nn.functional.relu):
            names[node] = builder.module(name, given[0], nn.ReLU())
        elif node.op == "output" and isinstance(node.args[0], fx.Node):
            return names[node.args[0]]
        else:
            raise ConfigError(f"{node.name}: {node.target} is not supported", code="unsupported-module")
    raise ConfigError("the network has no output", code="unsupported-module")


def _guarded(compiled: Compiled, calibration: NDArray[np.float64]) -> Compiled:
    """Set the bounds and, behind all gates, the guard from the calibration images."""
    program = compiled.program
    gates = [layer.name for layer in program.layers if isinstance(layer, ReluLayer)]
    sums, largest = dict.fromkeys(gates, 0.0), 0.0
    for image in calibration:
        found = evaluate(program, compiled.weights, image)
        sums = {name: max(value, float(found[name].sum())) for name, value in sums.items()}
        largest = max(largest, float(found[program.output].abs().max()))
    changes: dict[str, Any] = {"output_bound": MARGIN * (largest + 1.0)}
    if gates:
        limits = tuple(float(np.ceil(MARGIN * (value + 1.0))) for value in sums.values())
        guard = GuardLayer(name="guarded_sums", sources=tuple(gates), limits=limits)
        gate = ReluLayer(name="guard", source=guard.name, shift=program.weight_fraction_bits)
        changes |= {"layers": (*program.layers, guard, gate), "guard": gate.name}
    return Compiled(Program.model_validate(program.model_dump() | changes), compiled.weights)
