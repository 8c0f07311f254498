"""What follows from a public program: shapes, scales, gates, and the course and size of all that is sent."""

from __future__ import annotations

import hashlib
from collections import Counter
from math import prod

from pydantic import ValidationError

from dicom_node.core.errors import ConfigError, ProtocolError

from ..program import (
    INPUT,
    AdditionLayer,
    Gated,
    GuardLayer,
    Layer,
    Program,
    ReluLayer,
    Weighted,
    shapes_of,
    sources,
    weight_shape,
)
from . import messages
from .gate import Gate, ReluGate, TruncationGate, gate_of
from .manifest import largest_signed
from .packing import packed_bytes
from .ring import Ring
from .session import Step

#: Bounds on one query's work at any role: bytes of material and of weights, and products of the linear layers.
LARGEST_MATERIAL, LARGEST_WORK = 1 << 30, 1 << 36


class Plan:
    """A checked program.

    A tensor is *dealt* when the dealer can compute party 0's share of it: the input, results of gates, and local layers
    of these. Only a dealt tensor can enter a layer with weights.

    Parameters
    ----------
    program : Program

    Attributes
    ----------
    shapes, fractions : dict
        Shape and fractional bits of each tensor, by name.
    weighted, gates : dict
        Layers with weights and gates, by name, in running order.
    numbers : dict
        Each tensor's number, 0 for the input: what messages and streams are labelled with.
    rounds : list of list of str
        Gates in running order; those of one list do not wait for each other's results, so their messages go together.
    directly : dict
        Of gates that alone take a weighted layer's result: the gate's name, and the layer's.
    materials : dict
        Bytes of what the dealer gives party 1, by layer, in running order.
    largest_signed : int
        Greatest length of a bundle's signed manifest, bytes.

    Raises
    ------
    ConfigError
        Layers do not fit each other (``program-shape``), results do not fit the ring (``ring-overflow``), or messages
        do not fit their frames (``program-too-large``).
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.ring = Ring(program.ring_bits)
        self.encoded = program.model_dump_json().encode()
        self.digest = hashlib.sha256(self.encoded).digest()
        self.shapes = shapes_of(program)
        self.fractions = {INPUT: program.fraction_bits}
        self.numbers = {INPUT: 0} | {layer.name: number for number, layer in enumerate(program.layers, 1)}
        self.weighted: dict[str, Weighted] = {}
        self.gates: dict[str, Gate] = {}
        self.rounds: list[list[str]] = []
        dealt, awaited, self._kept = {INPUT}, set[str](), kept_bits(program)
        for layer in program.layers:
            if not awaited.isdisjoint(sources(layer)):
                awaited = set()
            if isinstance(layer, Gated):
                if not awaited:
                    self.rounds.append([])
                self.rounds[-1].append(layer.name)
                awaited.add(layer.name)
            self._add(layer, dealt)
        if program.guard is not None and not isinstance(self.gates.get(program.guard), ReluGate):
            raise ConfigError("the guard is no gate", code="program-shape")
        if program.output_bound * 2.0 ** self.fractions[program.output] >= 2.0 ** (self.ring.bits - 2):
            raise ConfigError("the program's results do not fit its ring", code="ring-overflow")
        taken = Counter(one for layer in program.layers for one in sources(layer))
        taken[program.output] += 1
        self.directly = {
            layer.name: sources(layer)[0]
            for layer in program.layers
            if isinstance(layer, Gated) and sources(layer)[0] in self.weighted and taken[sources(layer)[0]] == 1
        }
        tables = {name: gate.material for name, gate in self.gates.items()}
        self.materials = {
            name: tables.get(name) or self.size(name) for name in self.numbers if {name} & {*tables, *self.weighted}
        }
        self.largest_signed = largest_signed(len(self.materials))
        self._measure()

    def _add(self, layer: Layer, dealt: set[str]) -> None:
        given, name = sources(layer), layer.name
        fraction = self.fractions[given[0]]
        if isinstance(layer, Weighted):
            if given[0] not in dealt:
                raise ConfigError(f"layer {name} needs a gate before it", code="program-shape")
            fraction += self.program.weight_fraction_bits
            self.weighted[name] = layer
        elif isinstance(layer, Gated):
            fraction -= layer.shift
            self.gates[name] = gate_of(layer, self.ring, prod(self.shapes[name]), fraction, self._kept.get(name, 0))
            dealt.add(name)
        elif isinstance(layer, AdditionLayer):
            fraction += layer.first_shift
            if fraction != self.fractions[given[1]] + layer.second_shift:
                raise ConfigError(f"layer {name} adds numbers of different scales", code="program-shape")
        elif isinstance(layer, GuardLayer) and len({self.fractions[one] for one in given}) != 1:
            raise ConfigError(f"layer {name} adds numbers of different scales", code="program-shape")
        if isinstance(layer, GuardLayer) and len(layer.limits) != len(given):
            raise ConfigError(f"layer {name} needs a limit for each source", code="program-shape")
        if not isinstance(layer, Weighted) and all(one in dealt for one in given):
            dealt.add(name)
        self.fractions[name] = fraction

    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of all weights, in running order."""
        return [weight_shape(one, self.shapes[one.source]) for one in self.weighted.values()]

    @property
    def opened(self) -> list[str]:
        """Name what is opened to party 0: the output, and the guard where there is one."""
        return [one for one in (self.program.output, self.program.guard) if one is not None]

    def size(self, *names: str) -> int:
        """Return the length of tensors, bytes."""
        return sum(prod(self.shapes[one]) for one in names) * self.ring.width

    def _step(self, kind: type[messages.OfBundle], name: str, bits: int | None = None) -> Step:
        """Give the message that brings a tensor, or so many bits of each value, packed."""
        size = self.size(name) if bits is None else packed_bytes(prod(self.shapes[name]), bits)
        return Step(kind, name, self.numbers[name], size)

    def to_party(self) -> list[Step]:
        """List what party 1 receives after `Open`: from the dealer, from party 0 offline, and from party 0 online."""
        found = [Step(messages.Half, size=self.largest_signed)]
        found += [Step(messages.Material, name, self.numbers[name], size) for name, size in self.materials.items()]
        found += [self._step(messages.Covered, name) for name in self.gates]
        found.append(self._step(messages.Masked, INPUT))
        for names in self.rounds:
            later: list[Step] = []
            for name in names:
                gate = self.gates[name]
                if isinstance(gate, TruncationGate):
                    found.append(self._step(messages.Masked, name, gate.shift))
                else:
                    found.append(self._step(messages.Bits, name, gate.joined_bits + gate.comparisons))
                    later.append(self._step(messages.Masked, name))
            found += later
        return found

    def to_hospital(self) -> list[Step]:
        """List what party 0 receives of party 1: before the query (blinded weights, where it asks) and in it."""
        found = [Step(messages.Ready, size=sum(map(prod, self.weight_shapes())) * self.ring.width)]
        found += [Step(messages.Prepared)] if self.gates else []
        for names in self.rounds:
            later: list[Step] = []
            for name in names:
                gate = self.gates[name]
                if isinstance(gate, TruncationGate):
                    found.append(self._step(messages.Tops, name, 1))
                else:
                    found.append(self._step(messages.Shifted, name, gate.seen_bits))
                    found.append(self._step(messages.Digits, name, gate.joined_bits))
                    later.append(self._step(messages.Signs, name, gate.comparisons))
            found += later
        return [*found, Step(messages.Output, size=self.size(*self.opened))]

    def _measure(self) -> None:
        steps = [*self.to_party(), *self.to_hospital()]
        material = sum(self.materials.values())
        weights = zip(self.weighted, self.weight_shapes(), strict=True)
        work = sum(prod(weight[1:]) * prod(self.shapes[name]) for name, weight in weights)
        limits = {
            messages.LARGEST_FRAME: max(one.size for one in steps) + messages.LARGEST_FAILURE,
            messages.LARGEST_PROGRAM: len(self.encoded),
            LARGEST_MATERIAL: material,
            LARGEST_WORK: work,
        }
        if any(found > most for most, found in limits.items()):
            raise ConfigError("the program is too large for this protocol", code="program-too-large")


def kept_bits(program: Program) -> dict[str, int]:
    """Find how many of the lowest bits of each tensor matter: those that the next gates open, or all of an output's."""
    kept: dict[str, int] = {one: program.ring_bits for one in (program.output, program.guard) if one is not None}
    for layer in reversed(program.layers):
        bits = kept.get(layer.name, 0)
        if isinstance(layer, Gated):
            bits = (layer.bits if isinstance(layer, ReluLayer) else None) or program.ring_bits
        for one in sources(layer):
            kept[one] = max(kept.get(one, 0), bits)
    return kept


def parse(encoded: bytes) -> Plan:
    """Read a program that a peer sent.

    Raises
    ------
    ProtocolError
        It is malformed, too large, or not in its one canonical spelling (``malformed-program``).
    """
    try:
        plan = Plan(Program.model_validate_json(encoded))
    except (ValidationError, ConfigError) as error:
        raise ProtocolError("the peer's program is malformed or too large", code="malformed-program") from error
    if plan.encoded != encoded:
        raise ProtocolError("the peer's program is not in its canonical form", code="malformed-program")
    return plan
