"""What follows from the public program of a whole network: shapes, scales, gates, and the size of all that is sent."""

from __future__ import annotations

import hashlib
from math import prod

from dicom_node.core.errors import ConfigError

from ..program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    Gated,
    GuardLayer,
    NetworkLayer,
    NetworkProgram,
    Shape,
    Weighted,
    shapes_of,
    sources,
    weight_shape,
)
from .gate import Gate, ReluGate, TruncationGate, gate_of
from .messages import LARGEST_LAYER, LARGEST_PROGRAM, Half, Masked, Output, Ready, overhead
from .packing import packed_bytes
from .ring import Ring

#: Bounds on one query's work at any role: bytes of material and of weights, and products of the linear layers.
LARGEST_MATERIAL, LARGEST_WORK = 1 << 30, 1 << 36


class NetworkPlan:
    """A checked program of a network.

    A tensor is *dealt* when the dealer can compute party 0's share of it: the input, results of gates, and local layers
    of these. Only a dealt tensor can enter a layer with weights.

    Parameters
    ----------
    program : NetworkProgram

    Attributes
    ----------
    shapes, fractions : dict
        Shape and fractional bits of each tensor, by name.
    weighted, gates : dict
        Layers with weights and gates, by name, in running order.
    numbers : dict
        Each tensor's number, 0 for the input: what messages and streams are labelled with.

    Raises
    ------
    ConfigError
        Layers do not fit each other (``program-shape``), or messages would not fit (``program-too-large``).
    """

    def __init__(self, program: NetworkProgram) -> None:
        self.program = program
        self.ring = Ring(program.ring_bits)
        self.encoded = program.model_dump_json().encode()
        self.digest = hashlib.sha256(self.encoded).digest()
        self.shapes = shapes_of(program)
        self.fractions = {INPUT: program.fraction_bits}
        self.numbers = {INPUT: 0} | {layer.name: number for number, layer in enumerate(program.layers, 1)}
        self.weighted: dict[str, Weighted] = {}
        self.gates: dict[str, Gate] = {}
        dealt = {INPUT}
        for layer in program.layers:
            self._add(layer, dealt)
        if program.guard is not None and not isinstance(self.gates.get(program.guard), ReluGate):
            raise ConfigError("the guard is no gate", code="program-shape")
        if program.output_bound * 2.0 ** self.fractions[program.output] >= 2.0 ** (self.ring.bits - 2):
            raise ConfigError("the program's results do not fit its ring", code="ring-overflow")
        self._measure()

    def _add(self, layer: NetworkLayer, dealt: set[str]) -> None:
        given, name = sources(layer), layer.name
        fraction = self.fractions[given[0]]
        if isinstance(layer, ConvolutionLayer | DenseLayer):
            if given[0] not in dealt:
                raise ConfigError(f"layer {name} needs a gate before it", code="program-shape")
            fraction += self.program.weight_fraction_bits
            self.weighted[name] = layer
        elif isinstance(layer, Gated):
            fraction -= layer.shift
            self.gates[name] = gate_of(layer, self.ring, prod(self.shapes[name]), fraction)
            dealt.add(name)
        elif isinstance(layer, AdditionLayer):
            fraction += layer.first_shift
            if fraction != self.fractions[given[1]] + layer.second_shift:
                raise ConfigError(f"layer {name} adds numbers of different scales", code="program-shape")
        elif isinstance(layer, GuardLayer) and len({self.fractions[one] for one in given}) != 1:
            raise ConfigError(f"layer {name} adds numbers of different scales", code="program-shape")
        if isinstance(layer, GuardLayer) and len(layer.limits) != len(given):
            raise ConfigError(f"layer {name} needs a limit for each source", code="program-shape")
        if not isinstance(layer, ConvolutionLayer | DenseLayer) and all(one in dealt for one in given):
            dealt.add(name)
        self.fractions[name] = fraction

    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of all weights, in running order."""
        return [weight_shape(one, self.shapes[one.source]) for one in self.weighted.values()]

    def size(self, name: str) -> int:
        """Return the length of a tensor, bytes."""
        return prod(self.shapes[name]) * self.ring.width

    def material(self, name: str) -> int:
        """Return the length of what the dealer gives party 1 for a layer, bytes; 0 where it gives nothing."""
        if name in self.weighted:
            return self.size(name)
        return self.gates[name].material if name in self.gates else 0

    def masked(self, name: str) -> int:
        """Return the length of what party 0 sends of its share of a tensor, bytes."""
        gate = self.gates.get(name)
        return packed_bytes(gate.size, gate.shift) if isinstance(gate, TruncationGate) else self.size(name)

    def output_shapes(self) -> list[Shape]:
        """Return the shapes of what is opened to party 0: the output, and the guard where there is one."""
        program = self.program
        return [self.shapes[one] for one in (program.output, program.guard) if one is not None]

    def _measure(self) -> None:
        weights = self.weight_shapes()
        self.largest_ready = overhead(Ready) + sum(map(prod, weights)) * self.ring.width
        self.largest_half = overhead(Half)
        self.largest_output = overhead(Output) + sum(map(prod, self.output_shapes())) * self.ring.width
        layers = [self.material(one) for one in self.numbers if one != INPUT]
        work = sum(
            prod(weight[1:]) * prod(self.shapes[name]) for name, weight in zip(self.weighted, weights, strict=True)
        )
        frames = (self.largest_ready, *layers, *(self.size(one) + overhead(Masked) for one in self.numbers))
        small = max(frames) <= LARGEST_LAYER - 64 and sum(layers) <= LARGEST_MATERIAL and work <= LARGEST_WORK
        if not small or len(self.encoded) > LARGEST_PROGRAM:
            raise ConfigError("the program is too large for this protocol", code="program-too-large")
