"""Party 1 of a whole network: computes on masked tensors and leads through the gates (no I/O)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError

from ..program import INPUT, Gated, GuardLayer, sources
from .bounds import prove
from .gate import Bytes, ReluGate, TruncationGate
from .layers import local, weigh
from .messages import (
    Bits,
    Covered,
    Half,
    Label,
    Masked,
    Material,
    Message,
    Open,
    Output,
    Ready,
    Shifted,
    Signs,
    Tops,
    Vector,
    overhead,
)
from .network_plan import NetworkPlan
from .packing import pack, packed_bytes, unpack
from .party1 import OwnerSession, PartySession, PrivateModel
from .plan import LARGEST_FAILURE, LARGEST_OPEN
from .prg import gate_masks, weight_masks
from .ring import Words, packed
from .session import State


@dataclass(frozen=True)
class PrivateNetwork:
    """A network as party 1 serves it: fixed-point weights and biases by layer."""

    version: str
    model: bytes
    plan: NetworkPlan
    weights: Mapping[str, Words]
    biases: Mapping[str, Words]

    @classmethod
    def of(
        cls, version: str, model: bytes, plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float64]]
    ) -> PrivateNetwork:
        """Round a model's tensors and prove that nothing can wrap, or that the guard sees it.

        Raises
        ------
        ConfigError
            Neither holds (``ring-overflow``): publish the model with other scales or limits.
        """
        prove(plan, tensors)
        ring, program = plan.ring, plan.program
        weights = {name: ring.encode(tensors[f"{name}.weight"], program.weight_fraction_bits) for name in plan.weighted}
        biases = {name: ring.encode(tensors[f"{name}.bias"], plan.fractions[name]) for name in plan.weighted}
        return cls(version, model, plan, weights, biases)


class NetworkParty(OwnerSession[PrivateNetwork]):
    """One bundle of a network at party 1; see `OwnerSession`."""

    LEGAL: ClassVar = {
        (State.NEW, Open): "_on_open",
        (State.FETCHING, Half): "_on_half",
        (State.LOADING, Material): "_on_material",
        (State.COVERING, Covered): "_on_covered",
        (State.READY, Masked): "_on_masked",
        (State.JOINING, Bits): "_on_bits",
    }

    def _on_open(self, message: Open) -> Message:
        answer = super()._on_open(message)
        assert self.model is not None
        plan = self.model.plan
        self._plan = plan
        self._awaited = [name for name in plan.numbers if name != INPUT and plan.material(name)]
        self._gates = list(plan.gates)
        self._material: dict[str, Vector] = {}
        self._covered: dict[str, Words] = {}
        self._shares: dict[str, Words] = {}
        self._cursor = 0
        self._waiting = INPUT
        return answer

    @property
    def limit(self) -> int:
        """Longest frame that may come from the hospital now."""
        if self.state is State.NEW:
            return LARGEST_OPEN
        size = 0
        if self.state is State.COVERING:
            size = self._plan.size(self._gates[0])
        elif self.state is State.READY:
            size = self._plan.masked(self._waiting)
        elif self.state is State.JOINING:
            gate = self._relu()
            size = packed_bytes(gate.size, gate.joined_bits + gate.comparisons)
        return max(overhead(Masked) + size, LARGEST_FAILURE)

    @property
    def dealer_limit(self) -> int:
        """Longest frame that may come from the dealer now."""
        if self.state is State.FETCHING:
            return self._plan.largest_half
        return max(overhead(Material) + self._plan.material(self._awaited[0]), LARGEST_FAILURE)

    def _on_half(self, message: Half) -> Message | None:
        self._same(message.bundle, self.bundle)
        if message.corrections:
            raise ProtocolError("the dealer sent corrections before the material", code="wrong-size")
        assert self.model is not None
        assert self._open is not None
        masks = weight_masks(message.weight_mask_seed)
        ring, plan = self._plan.ring, self._plan
        self._party = gate_masks(message.weight_mask_seed, self.bundle)
        blinded = bytearray()
        if self._open.wants_delta:
            for name, weight in self.model.weights.items():  # one by one: all at once would be held four times over
                mask = masks.words(Label.WEIGHT_MASK, plan.numbers[name], weight.shape, ring)
                blinded += ring.to_bytes([weight - mask])
        self._blinded = bytes(blinded)
        self.state = State.LOADING
        return self._ready() if not self._awaited else None

    def _on_material(self, message: Material) -> Message | None:
        self._same(message.bundle, self.bundle)
        name = self._awaited[0]
        if message.layer != self._plan.numbers[name]:
            raise ProtocolError("the dealer sent the layers out of order", code="out-of-order")
        if len(message.values) != self._plan.material(name):
            raise ProtocolError("the dealer sent material of the wrong size", code="wrong-size")
        self._material[name] = message.values
        del self._awaited[0]
        return self._ready() if not self._awaited else None

    def _ready(self) -> Message:
        self.state = State.COVERING if self._gates else State.READY
        blinded, self._blinded = self._blinded, b""
        return Ready(self.bundle, self._lifetime_s, blinded)

    def _on_covered(self, message: Covered) -> None:
        self._same(message.bundle, self.bundle)
        name, plan = self._gates[0], self._plan
        number, shape = plan.numbers[name], plan.shapes[name]
        if message.layer != number:
            raise ProtocolError("the hospital sent the layers out of order", code="out-of-order")
        covered = plan.ring.from_bytes(message.values, shape)
        self._covered[name] = covered + self._party.words(Label.PARTY_GATE_MASK, number, shape, plan.ring)
        del self._gates[0]
        if not self._gates:
            self.state = State.READY

    def _on_masked(self, message: Masked) -> Message:
        name = self._named(message.bundle, message.layer)
        shape, gate = self._plan.shapes[name], self._plan.gates.get(name)
        if isinstance(gate, TruncationGate):
            # Only multiples of 2^(bits - shift) separate party 0's share from its fresh mask.
            high = gate.ring.bits - gate.shift
            masked = unpack(message.values, gate.size, gate.shift, f"u{gate.ring.width}", low=high).reshape(shape)
        else:
            masked = self._plan.ring.from_bytes(message.values, shape)
        # Without a share of its own (the input), party 1 holds x - r at once; else its share of the gate's result adds.
        self._shares[name] = masked + self._shares[name] if name in self._shares else masked
        return self._advance()

    def _named(self, bundle: bytes, layer: int) -> str:
        self._same(bundle, self.bundle)
        if layer != self._plan.numbers[self._waiting]:
            raise ProtocolError("the hospital sent the layers out of order", code="out-of-order")
        return self._waiting

    def _advance(self) -> Message:
        """Compute up to the next gate, or to the output."""
        assert self.model is not None
        plan, program, shares = self._plan, self._plan.program, self._shares
        while self._cursor < len(program.layers):
            layer = program.layers[self._cursor]
            self._cursor += 1
            name, given = layer.name, [shares[one] for one in sources(layer)]
            if isinstance(layer, Gated):
                self._waiting = name
                return self._shift(name, given[0])
            if name in plan.weighted:
                correction = plan.ring.from_bytes(self._material.pop(name), plan.shapes[name])
                found = weigh(plan.weighted[name], given[0], self.model.weights[name]) + correction
                shares[name] = found + self.model.biases[name][:, None, None]
            else:
                shares[name] = local(layer, given)
            if isinstance(layer, GuardLayer):
                limits = plan.ring.encode(np.array(layer.limits), plan.fractions[name])
                shares[name] = shares[name] - limits[:, None, None]
        opened = [shares[one] for one in (program.output, program.guard) if one is not None]
        values = plan.ring.to_bytes(opened)
        self.state = State.DONE
        self._forget()
        return Output(self.bundle, values)

    def _shift(self, name: str, share: Words) -> Message:
        gate, number = self._plan.gates[name], self._plan.numbers[name]
        opened = (self._covered.pop(name) + share).reshape(-1)
        tables = np.frombuffer(self._material.pop(name), np.uint8)
        if isinstance(gate, TruncationGate):
            tops, result = gate.truncate(opened, tables)
            self._shares[name] = result.reshape(self._plan.shapes[name])
            self.state = State.READY
            return Tops(self.bundle, number, packed(pack(tops, 1)))
        self._opened, self._tables = opened, gate.view(tables)
        self._bits, self._highest = gate.compare(opened, self._tables)
        self.state = State.JOINING
        high, joined = pack(opened, gate.seen_bits, gate.low), pack(self._bits, gate.joined_bits)
        return Shifted(self.bundle, number, packed(high, joined))

    def _relu(self) -> ReluGate:
        gate = self._plan.gates[self._waiting]
        assert isinstance(gate, ReluGate)
        return gate

    def _on_bits(self, message: Bits) -> Message:
        name = self._named(message.bundle, message.layer)
        gate = self._relu()
        theirs = unpack(message.values, gate.size, gate.joined_bits + gate.comparisons, "u4")
        joined = self._bits ^ (theirs & np.uint32((1 << gate.joined_bits) - 1))
        signs = gate.sign(self._opened, self._tables, joined, self._highest, 1)
        opened: Bytes = signs ^ (theirs >> np.uint32(gate.joined_bits)).astype(np.uint8)
        share = gate.select(self._opened, self._tables, opened, 1)
        self._shares[name] = share.reshape(self._plan.shapes[name])
        self.state = State.READY
        return Signs(self.bundle, message.layer, packed(pack(signs, gate.comparisons)))

    def _forget(self) -> None:
        self._material, self._covered, self._shares = {}, {}, {}
        self._opened = self._bits = self._tables = self._highest = None  # type: ignore[assignment]  # dropped for good


def session_for(
    message: Message,
    hospital: bytes,
    find: Callable[[bytes], PrivateModel | PrivateNetwork],
    spend: Callable[[bytes], None],
    lifetime_s: int,
) -> PartySession | NetworkParty:
    """Make the session that fits the model which a first message names; see `OwnerSession`."""
    model = find(message.model) if isinstance(message, Open) else None
    if isinstance(model, PrivateNetwork):
        return NetworkParty(hospital, lambda _: model, spend, lifetime_s)

    def chain(digest: bytes) -> PrivateModel:
        found = find(digest)
        assert isinstance(found, PrivateModel)
        return found

    return PartySession(hospital, chain, spend, lifetime_s)
