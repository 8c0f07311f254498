"""Party 0 of a whole network: knows its share of every tensor ahead, takes part in the gates online (no I/O)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError, Refused

from ..program import INPUT, ReluLayer, sources
from .gate import SIGN_BIT, Bytes
from .layers import local, weigh
from .messages import Bits, Bundle, Covered, Label, Masked, Message, Output, Ready, Shifted, Signs, Vector, overhead
from .network_deal import masks_of
from .network_plan import NetworkPlan
from .party0 import HospitalSession, Terms
from .plan import LARGEST_FAILURE
from .prg import Prg
from .ring import Words, packed
from .session import State


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
        size = gate.size * (self._plan.ring.width + 2) if self.state is State.QUERYING else -(-gate.size // 8)
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
            elif isinstance(layer, ReluLayer):
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

    def _gate(self, bundle: bytes, layer: int) -> str:
        self._same(bundle, self.bundle)
        if self._next == len(self._order) or layer != self._plan.numbers[self._order[self._next]]:
            raise ProtocolError("party 1 sent the layers out of order", code="out-of-order")
        return self._order[self._next]

    def _on_shifted(self, message: Shifted) -> Message:
        name = self._gate(message.bundle, message.layer)
        gate, ring = self._plan.gates[name], self._plan.ring
        length = gate.size * ring.width
        opened = ring.from_bytes(message.values[:length], (gate.size,))
        theirs = small(message.values[length:], gate.size)
        tables = gate.view(self._tables[name])
        bits, highest = gate.compare(opened, tables)
        signs = gate.sign(opened, tables, bits ^ theirs, highest, 0)
        self._opened = opened
        self._signs = signs
        self.state = State.JOINING
        sent = bits | (signs.astype(np.uint16) << np.uint16(SIGN_BIT))
        return Bits(message.bundle, message.layer, packed(sent))

    def _on_signs(self, message: Signs) -> Message:
        name = self._gate(message.bundle, message.layer)
        gate = self._plan.gates[name]
        assert self._opened is not None
        signs = self._signs ^ unpacked(message.values, gate.size)
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


def small(data: Vector, count: int) -> NDArray[np.uint16]:
    """Read words of 16 bits; ProtocolError where it is not exactly `count` of them."""
    if len(data) != 2 * count:
        raise ProtocolError(f"the peer sent {len(data)} bytes where {2 * count} belong", code="wrong-size")
    return np.frombuffer(data, "<u2")


def unpacked(data: Vector, count: int) -> Bytes:
    """Read single bits; ProtocolError where it is not exactly `count` of them."""
    if len(data) != -(-count // 8):
        raise ProtocolError(f"the peer sent {len(data)} bytes where {-(-count // 8)} belong", code="wrong-size")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count)
