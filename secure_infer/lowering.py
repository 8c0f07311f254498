"""Modules of a trained network as layers of a program, one by one; `compile` walks the network and sets the bounds.

A tensor is *wide* while it carries the fraction of the weights besides its own, until a gate drops it. Average pooling
becomes a sum; what it should have been divided by, the *gain* of a tensor, is divided out of the weights that follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dicom_node.core.errors import ConfigError

from .program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    Layer,
    ReluLayer,
    Shape,
    SliceLayer,
    SumPoolLayer,
    TruncationLayer,
    shape_after,
    sources,
)


def unsupported(name: str, why: str) -> ConfigError:
    """Make the error for a module that has no layers."""
    return ConfigError(f"{name}: {why}", code="unsupported-module")


@dataclass
class Lowering:
    """Layers so far, and for each tensor its shape, its gain and whether it is wide.

    Attributes
    ----------
    shift : int
        Fractional bits of the weights, which each gate drops.
    maxima : set of str
        Gates inside of max-pools, whose results can never be larger than what they choose from.
    """

    shift: int
    shapes: dict[str, Shape]
    layers: list[Layer] = field(default_factory=list)
    weights: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=lambda: {INPUT: 1.0})
    wide: dict[str, bool] = field(default_factory=lambda: {INPUT: False})
    maxima: set[str] = field(default_factory=set)
    _narrowed: dict[str, str] = field(default_factory=dict)

    def add(self, layer: Layer, *, gain: float, wide: bool) -> str:
        """Append a layer; ConfigError (``program-shape``) where its inputs do not fit."""
        try:
            shape = shape_after(layer, [self.shapes[one] for one in sources(layer)])
        except ValueError as error:
            raise ConfigError(str(error), code="program-shape") from error
        self.layers.append(layer)
        self.shapes[layer.name], self.gains[layer.name], self.wide[layer.name] = shape, gain, wide
        return layer.name

    def module(self, name: str, source: str, module: nn.Module) -> str:
        """Add one module and return its tensor; several kinds add nothing.

        Raises
        ------
        ConfigError
            There are no layers for it (``unsupported-module``).
        """
        gain, wide = self.gains[source], self.wide[source]
        if isinstance(module, nn.Identity | nn.Dropout):
            return source
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and module.dilation == (1, 1):
            if isinstance(module.padding, str):
                raise unsupported(name, "give the padding as numbers")
            convolution = ConvolutionLayer(
                name=name,
                source=self._narrow(source),
                out_channels=module.out_channels,
                kernel=_pair(module.kernel_size),
                stride=_pair(module.stride),
                padding=_pair(module.padding),
                groups=module.groups,
            )
            return self._weigh(convolution, module)
        if isinstance(module, nn.Linear):
            dense = DenseLayer(name=name, source=self._narrow(source), out_features=module.out_features)
            return self._weigh(dense, module)
        if type(module) in (nn.ReLU, nn.ReLU6):
            if not wide:
                raise unsupported(name, "a ReLU must follow weights")
            ceiling = 6.0 * gain if isinstance(module, nn.ReLU6) else None
            relu = ReluLayer(name=name, source=source, shift=self.shift, ceiling=ceiling)
            return self.add(relu, gain=gain, wide=False)
        if isinstance(module, nn.MaxPool2d) and _pair(module.dilation) == (1, 1):
            if module.ceil_mode or module.return_indices:
                raise unsupported(name, "a MaxPool2d gives whole windows and no indices")
            return self._maximum(name, source, module)
        if isinstance(module, nn.AvgPool2d) and not module.ceil_mode and module.divisor_override is None:
            if not module.count_include_pad and _pair(module.padding) != (0, 0):
                raise unsupported(name, "pooling must count its padding")
            return self._pool(name, source, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            _, rows, columns = self.shapes[source]
            return self._pool(name, source, (rows, columns), (1, 1), (0, 0))
        if isinstance(module, nn.Flatten) and module.start_dim == 1:
            return self.add(FlattenLayer(name=name, source=source), gain=gain, wide=wide)
        raise unsupported(name, f"a {type(module).__name__} of this kind is not supported")

    def sum(self, name: str, first: str, second: str) -> str:
        """Add an addition; ConfigError (``unsupported-module``) where one side alone was pooled."""
        # Where one side was pooled, the weights on the other side can take its gain on.
        self._raise_gain(first, self.gains[second])
        self._raise_gain(second, self.gains[first])
        if self.gains[first] != self.gains[second]:
            raise unsupported(name, "a pooled tensor can only be added to one pooled alike")
        wide = self.wide[first] or self.wide[second]
        shifts = [self.shift if wide and not self.wide[one] else 0 for one in (first, second)]
        layer = AdditionLayer(name=name, first=first, second=second, first_shift=shifts[0], second_shift=shifts[1])
        return self.add(layer, gain=self.gains[first], wide=wide)

    def round(self, source: str, bits: int) -> str:
        """Drop fractional bits of an output, which is wide, but for some."""
        return self.add(TruncationLayer(name="rounded", source=source, shift=bits), gain=1.0, wide=False)

    def _narrow(self, source: str) -> str:
        # Weights need an input that a gate gave: a linear bottleneck gets one that only truncates.
        if not self.wide[source]:
            return source
        if source not in self._narrowed:
            layer = TruncationLayer(name=f"{source}_narrow", source=source, shift=self.shift)
            self._narrowed[source] = self.add(layer, gain=self.gains[source], wide=False)
        return self._narrowed[source]

    def _weigh(self, layer: ConvolutionLayer | DenseLayer, module: nn.Conv2d | nn.Linear) -> str:
        weight = module.weight.detach().double().numpy() / self.gains[layer.source]
        bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
        # As the weights file holds them, so that every engine computes with the same numbers.
        self.weights[f"{layer.name}.weight"] = weight.astype(np.float32).astype(np.float64)
        self.weights[f"{layer.name}.bias"] = bias.astype(np.float32).astype(np.float64)
        return self.add(layer, gain=1.0, wide=True)

    def _pool(
        self, name: str, source: str, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
    ) -> str:
        layer = SumPoolLayer(name=name, source=source, kernel=kernel, stride=stride, padding=padding)
        return self.add(layer, gain=self.gains[source] * prod(kernel), wide=self.wide[source])

    def _maximum(self, name: str, source: str, module: nn.MaxPool2d) -> str:
        # Columns first: the rows are then compared on what the columns left, 2 + 1 comparisons each in place of 3 x 3.
        kernel, step, margin = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
        if 2 * margin[0] > kernel[0] or 2 * margin[1] > kernel[1]:
            raise unsupported(name, "the padding of a max-pool is at most half its kernel")
        for axis in (1, 0):
            side = self.shapes[source][1 + axis]
            count = (side + 2 * margin[axis] - kernel[axis]) // step[axis] + 1
            if count < 1:
                raise ConfigError(f"the kernel of layer {name} is larger than its input", code="program-shape")
            parts = []
            for offset in range(kernel[axis]):
                # Padding repeats the edge, which stands in the window anyway: what torch pads with is never chosen.
                part = SliceLayer(
                    name=f"{name}_{'rc'[axis]}{offset}",
                    source=source,
                    axis="columns" if axis else "rows",
                    offset=offset - margin[axis],
                    step=step[axis],
                    count=count,
                )
                parts.append(self.add(part, gain=self.gains[source], wide=self.wide[source]))
            source = parts[0]
            for offset, other in enumerate(parts[1:], 1):
                source = self._larger(f"{name}_{'rc'[axis]}_max{offset}", other, source)
        return source

    def _larger(self, name: str, first: str, second: str) -> str:
        gain, wide = self.gains[first], self.wide[first]
        up = 0 if wide else self.shift
        difference = AdditionLayer(
            name=f"{name}_less", first=first, second=second, first_shift=up, second_shift=up, subtract=True
        )
        self.add(difference, gain=gain, wide=True)
        relu = self.add(ReluLayer(name=f"{name}_more", source=f"{name}_less", shift=self.shift), gain=gain, wide=False)
        self.maxima.add(relu)
        result = AdditionLayer(name=name, first=relu, second=second, first_shift=self.shift if wide else 0)
        return self.add(result, gain=gain, wide=wide)

    def _raise_gain(self, name: str, gain: float) -> None:
        used = any(name in sources(layer) for layer in self.layers)
        if gain > self.gains[name] and f"{name}.weight" in self.weights and not used:
            for part in (f"{name}.weight", f"{name}.bias"):
                scaled = self.weights[part] * (gain / self.gains[name])
                self.weights[part] = scaled.astype(np.float32).astype(np.float64)
            self.gains[name] = gain


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
