"""The private part of a model as a public program: a graph of layers, of which shapes and scales alone are told.

Tensors are named by the layer that gives them; the network's input is `INPUT`. A tensor is a fixed-point array of
(channels, rows, columns). A convolution or dense layer adds `weight_fraction_bits` to its fractional bits, a gate
(`Gated`) takes `shift` of them away, and additions need equal ones. What other frameworks have as one layer is put
together from these: the larger of a and b is b + relu(a - b), and max-pooling is that on slices. A linear head is the
smallest program: one convolution of 1 x 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

INPUT = "input"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Size = Annotated[int, Field(ge=1, le=1 << 20)]
Pair = tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]]
Margin = tuple[Annotated[int, Field(ge=0, le=64)], Annotated[int, Field(ge=0, le=64)]]


class Part(BaseModel):
    """Base of all parts of a card: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ConvolutionLayer(Part):
    """A private convolution (cross-correlation) with zero padding and a private bias."""

    kind: Literal["convolution"] = "convolution"
    name: Name = Field(description="prefix of its tensors <name>.weight and <name>.bias")
    source: Name
    out_channels: Size
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Margin = (0, 0)
    groups: Size = Field(default=1, description="1 is dense, the number of channels is depthwise")


class DenseLayer(Part):
    """A private matrix on a tensor of one row and one column."""

    kind: Literal["dense"] = "dense"
    name: Name = Field(description="prefix of its tensors <name>.weight and <name>.bias")
    source: Name
    out_features: Size


class ReluLayer(Part):
    """max(0, x), then an arithmetic shift to the right; the result may be one unit in the last place too large."""

    kind: Literal["relu"] = "relu"
    name: Name
    source: Name
    shift: int = Field(ge=1, le=30, description="fractional bits that are dropped")
    ceiling: float | None = Field(default=None, gt=0, description="larger values become this one: 6 for ReLU6")
    bits: int | None = Field(default=None, ge=8, le=64, description="bits that its input needs; the ring's by default")


class TruncationLayer(Part):
    """An arithmetic shift to the right; the result may be one unit in the last place too large."""

    kind: Literal["truncation"] = "truncation"
    name: Name
    source: Name
    shift: int = Field(ge=1, le=61, description="fractional bits that are dropped")


class AdditionLayer(Part):
    """The sum of two tensors, or their difference, each shifted to the left first."""

    kind: Literal["addition"] = "addition"
    name: Name
    first: Name
    second: Name
    first_shift: int = Field(default=0, ge=0, le=40)
    second_shift: int = Field(default=0, ge=0, le=40)
    subtract: bool = Field(default=False, description="whether the second is taken away")


class SumPoolLayer(Part):
    """Sums over windows; the division of average pooling belongs into the weights that follow."""

    kind: Literal["sum_pool"] = "sum_pool"
    name: Name
    source: Name
    kernel: Pair
    stride: Pair
    padding: Margin = (0, 0)


class SliceLayer(Part):
    """Every `step`-th row or column from `offset` on; a position outside the tensor means the nearest one inside."""

    kind: Literal["slice"] = "slice"
    name: Name
    source: Name
    axis: Literal["rows", "columns"]
    offset: int = Field(ge=-64, le=64)
    step: int = Field(ge=1, le=64)
    count: Size


class FlattenLayer(Part):
    """All values as channels of one row and one column."""

    kind: Literal["flatten"] = "flatten"
    name: Name
    source: Name


class GuardLayer(Part):
    """For each source, the sum of all its values less its limit: above zero, what follows could leave the ring."""

    kind: Literal["guard"] = "guard"
    name: Name
    sources: tuple[Name, ...] = Field(min_length=1, description="results of ReLUs, of equal fractional bits")
    limits: tuple[float, ...] = Field(description="largest sum of each source that is proven safe")


#: Layers with private weights.
Weighted = ConvolutionLayer | DenseLayer
#: Layers that the parties evaluate together.
Gated = ReluLayer | TruncationLayer
Layer = Annotated[
    Weighted | Gated | AdditionLayer | SumPoolLayer | SliceLayer | FlattenLayer | GuardLayer,
    Field(discriminator="kind"),
]
Shape = tuple[int, int, int]


def sources(layer: Layer) -> tuple[str, ...]:
    """Return the names of a layer's inputs."""
    if isinstance(layer, AdditionLayer):
        return (layer.first, layer.second)
    return layer.sources if isinstance(layer, GuardLayer) else (layer.source,)


class Program(Part):
    """What is computed under encryption."""

    ring_bits: Literal[32, 64] = Field(description="bits of the ring of the secret shares; 64 is the safe choice")
    input_shape: tuple[Size, Size, Size] = Field(description="channels, rows, columns")
    fraction_bits: int = Field(ge=1, le=30, description="fractional bits of the input")
    weight_fraction_bits: int = Field(ge=1, le=30, description="fractional bits of the weights")
    input_bound: float = Field(gt=0, description="largest absolute value that may enter")
    input_norm: float | None = Field(default=None, gt=0, description="largest Euclidean norm that may enter")
    output_bound: float = Field(gt=0, description="largest absolute value that may leave")
    output: Name = Field(description="the tensor that the hospital learns")
    guard: Name | None = Field(default=None, description="gate behind a guard: anything but 0 there means an error")
    layers: tuple[Layer, ...] = Field(min_length=1, max_length=1000, description="in running order")

    @model_validator(mode="after")
    def _is_a_graph(self) -> Self:
        known = {INPUT: None}
        for layer in self.layers:
            if layer.name in known:
                raise ValueError(f"two tensors are called {layer.name}")
            if missing := [one for one in sources(layer) if one not in known]:
                raise ValueError(f"layer {layer.name} takes {missing[0]}, which no earlier layer gives")
            known[layer.name] = None
        wanted = {self.output, self.guard or self.output}
        if not wanted <= set(known) - {INPUT}:
            raise ValueError("output and guard must be layers")
        shapes_of(self)
        return self


def shape_after(layer: Layer, given: Sequence[Shape]) -> Shape:
    """Return the shape of a layer's result; ValueError where the inputs do not fit the layer."""
    before: Shape = given[0]
    channels, rows, columns = before
    if isinstance(layer, AdditionLayer):
        if given[0] != given[1]:
            raise ValueError(f"layer {layer.name} adds tensors of different shapes")
        return before
    if isinstance(layer, FlattenLayer):
        return channels * rows * columns, 1, 1
    if isinstance(layer, GuardLayer):
        return len(given), 1, 1
    if isinstance(layer, SliceLayer):
        return (channels, layer.count, columns) if layer.axis == "rows" else (channels, rows, layer.count)
    if isinstance(layer, DenseLayer):
        if (rows, columns) != (1, 1):
            raise ValueError(f"layer {layer.name} needs a flat input")
        return layer.out_features, 1, 1
    if isinstance(layer, ConvolutionLayer | SumPoolLayer):
        out = channels
        if isinstance(layer, ConvolutionLayer):
            out = layer.out_channels
            if channels % layer.groups or out % layer.groups:
                raise ValueError(f"the groups of layer {layer.name} do not divide its channels")
        sides = [
            (side + 2 * margin - kernel) // stride + 1
            for side, margin, kernel, stride in zip(
                (rows, columns), layer.padding, layer.kernel, layer.stride, strict=True
            )
        ]
        if min(sides) < 1:
            raise ValueError(f"the kernel of layer {layer.name} is larger than its input")
        return out, sides[0], sides[1]
    return before


def positions(layer: SliceLayer, given: Shape) -> NDArray[np.intp]:
    """Return the rows or columns that a slice takes."""
    side = given[1] if layer.axis == "rows" else given[2]
    return np.clip(layer.offset + layer.step * np.arange(layer.count), 0, side - 1)


def weight_shape(layer: Weighted, given: Shape) -> tuple[int, ...]:
    """Return the shape of a layer's weight."""
    if isinstance(layer, DenseLayer):
        return layer.out_features, given[0]
    return layer.out_channels, given[0] // layer.groups, *layer.kernel


def shapes_of(program: Program) -> dict[str, Shape]:
    """Return the shape of every tensor, by name; ValueError where layers do not fit each other."""
    found = {INPUT: program.input_shape}
    for layer in program.layers:
        found[layer.name] = shape_after(layer, [found[one] for one in sources(layer)])
    return found


def tensor_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Return the shape of every private tensor, by its name in the model's weights."""
    shapes, found = shapes_of(program), dict[str, tuple[int, ...]]()
    for layer in program.layers:
        if isinstance(layer, Weighted):
            weight = weight_shape(layer, shapes[layer.source])
            found |= {f"{layer.name}.weight": weight, f"{layer.name}.bias": weight[:1]}
    return found
