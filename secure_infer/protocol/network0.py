"""Party 0 of a whole network: knows its share of every tensor ahead, takes part in the gates online (no I/O)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError, Refused

from ..program import INPUT, Gated, sources
from .gate import Bytes, ReluGate, TruncationGate
from .layers import local, weigh
from .messages import Bits, Bundle, Covered, Label, Masked, Message, Output, Ready, Shifted, Signs, Tops, overhead
from .network_deal import masks_of
from .network_plan import NetworkPlan
from .packing import pack, packed_bytes, split, unpack
from .party0 import HospitalSession, Terms
from .plan import LARGEST_FAILURE
from .prg import Prg
from .ring import Words, packed
from .session import State

GateKind = TypeVar("GateKind", ReluGate, TruncationGate)


class NetworkHospital(HospitalSession):
    """One query on a network; see `HospitalSession`.

    Attributes
    ----------
    outputs : ndarray of float64, shape (channels, rows * columns)
        The opened output, once the state is `DONE`.
    """

    LEGAL: ClassVar = {
        (State.DEALING, Bundle): "_on_bundle",
        (State.OPENING, Ready): "_on_ready",
        (State.QUERYING, Shifted): "_on_shifted",
        (State.JOINING, Signs): "_on_signs",
        (State.QUERYING, Tops): "_on_tops",
        (State.QUERYING, Output): "_on_output",
    }

    def __init__(self, terms: Terms, random: Callable[[int], bytes]) -> None:
        super().__init__(terms, random)
        assert isinstance(terms.plan, NetworkPlan)
        self._plan = terms.plan
        self._order = list(self._plan.gates)
        self._next = 0
        self._masks: dict[str, Words] = {}
        self._tables: dict[str, Bytes] = {}
        self._covered: dict[str, Words] = {}
        self._outputs: list[Words] = []
        self._opened: Words | None = None

    @property
    def limit(self) -> int:
        """Longest frame that may come from party 1 during a query."""
        if self._next == len(self._order):
            return max(self._plan.largest_output, LARGEST_FAILURE)
        gate = self._plan.gates[self._order[self._next]]
        size = gate.size  # a byte for each bit, or pair of bits, is more than enough
        if isinstance(gate, ReluGate) and self.state is State.QUERYING:
            size = packed_bytes(gate.size, gate.seen_bits) + packed_bytes(gate.size, gate.joined_bits)
        return max(overhead(Shifted) + size, LARGEST_FAILURE)

    def _prepare(self, message: Ready, bundle: Prg) -> None:
        plan, numbers = self._plan, self._plan.numbers
        deltas = dict(zip(plan.weighted, self._blinded(message.deltas, plan.weight_shapes()), strict=True))
        shares = {INPUT: masks_of(plan, INPUT, bundle)}
        for layer in plan.program.layers:
            name, given = layer.name, [shares[one] for one in sources(layer)]
            if name in plan.weighted:
                mask = bundle.words(Label.OUTPUT_MASK, numbers[name], plan.shapes[name], plan.ring)
                shares[name] = weigh(plan.weighted[name], given[0], deltas[name]) + mask
            elif isinstance(layer, Gated):
                gate = plan.gates[name]
                self._covered[name] = given[0] + gate.cover(numbers[name], bundle, plan.shapes[name])
                self._tables[name] = gate.tables(numbers[name], bundle)
                shares[name] = self._masks[name] = masks_of(plan, name, bundle)
            else:
                shares[name] = local(layer, given)
        self._masks[INPUT] = shares[INPUT]
        program = plan.program
        self._outputs = [shares[one] for one in (program.output, program.guard) if one is not None]

    def covers(self) -> Iterator[Message]:
        """Give the covered shares, which party 1 needs before the query."""
        self._require(State.READY)
        for name in self._order:
            values = self._plan.ring.to_bytes([self._covered.pop(name)])
            yield Covered(self.bundle, self._plan.numbers[name], values)

    def _mask(self, columns: NDArray[np.float64]) -> list[Masked]:
        if self._covered:
            raise ProtocolError("party 1 has no covered shares yet", code="out-of-order")
        values = self._plan.ring.encode(columns, self._plan.program.fraction_bits)
        return [self._masked(INPUT, values.reshape(self._plan.program.input_shape))]

    def _masked(self, name: str, share: Words) -> Masked:
        values = self._plan.ring.to_bytes([share - self._masks.pop(name)])
        return Masked(self.bundle, self._plan.numbers[name], values)

    def _gate(self, bundle: bytes, layer: int, kind: type[GateKind]) -> tuple[str, GateKind]:
        self._same(bundle, self.bundle)
        name = self._order[self._next] if self._next < len(self._order) else None
        if name is None or layer != self._plan.numbers[name] or not isinstance(gate := self._plan.gates[name], kind):
            raise ProtocolError("party 1 sent the layers out of order", code="out-of-order")
        return name, gate

    def _on_tops(self, message: Tops) -> Message:
        name, gate = self._gate(message.bundle, message.layer, TruncationGate)
        tops = unpack(message.values, gate.size, 1, "u1")
        answer = gate.answer(tops, self._tables.pop(name))
        del self._masks[name]  # party 0's share from here on, and all but the answer's bits of it need no message
        self._next += 1
        return Masked(message.bundle, message.layer, packed(pack(answer, gate.shift)))

    def _on_shifted(self, message: Shifted) -> Message:
        name, gate = self._gate(message.bundle, message.layer, ReluGate)
        high, joined = split(message.values, gate.size, gate.seen_bits)
        opened = unpack(high, gate.size, gate.seen_bits, f"u{self._plan.ring.width}", low=gate.low)
        theirs = unpack(joined, gate.size, gate.joined_bits, "u4")
        tables = gate.view(self._tables[name])
        bits, highest = gate.compare(opened, tables)
        signs = gate.sign(opened, tables, bits ^ theirs, highest, 0)
        self._opened = opened
        self._signs = signs
        self.state = State.JOINING
        sent = bits | (signs.astype(np.uint32) << np.uint32(gate.joined_bits))
        return Bits(message.bundle, message.layer, packed(pack(sent, gate.joined_bits + gate.comparisons)))

    def _on_signs(self, message: Signs) -> Message:
        name, gate = self._gate(message.bundle, message.layer, ReluGate)
        assert self._opened is not None
        signs = self._signs ^ unpack(message.values, gate.size, gate.comparisons, "u1")
        share = gate.select(self._opened, gate.view(self._tables.pop(name)), signs, 0)
        self._next, self._opened = self._next + 1, None
        self.state = State.QUERYING
        return self._masked(name, share.reshape(self._plan.shapes[name]))

    def _on_output(self, message: Output) -> None:
        self._same(message.bundle, self.bundle)
        if self._next != len(self._order):
            raise ProtocolError("party 1 sent the output before its time", code="out-of-order")
        plan, program = self._plan, self._plan.program
        theirs = plan.ring.split(message.values, plan.output_shapes())
        opened, *guard = (ours + other for ours, other in zip(self._outputs, theirs, strict=True))
        if any(one.any() for one in guard):
            raise Refused("this image leaves the range in which the model is proven", code="features-out-of-range")
        values = plan.ring.decode(opened.reshape(len(opened), -1), plan.fractions[program.output])
        self._finish(values, program.output_bound)

    def _forget(self) -> None:
        super()._forget()
        self._masks, self._tables, self._covered, self._outputs, self._opened = {}, {}, {}, [], None
        self._signs = np.empty(0, np.uint8)
