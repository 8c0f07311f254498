"""Party 1, the model's owner: computes on masked tensors and leads through the gates (state machine without I/O)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import IntegrityError, ProtocolError

from ..bounds import prove
from ..program import Gated, GuardLayer, sources
from .deal import materials
from .gate import Bytes, ReluGate, Tables, TruncationGate
from .layers import local, weigh
from .manifest import hashed, verified
from .messages import (
    Audit,
    Audited,
    Bits,
    Covered,
    Digits,
    Fetch,
    Half,
    Label,
    Masked,
    Material,
    Message,
    Open,
    Output,
    Prepared,
    Ready,
    Shifted,
    Signs,
    Tops,
    Vector,
)
from .packing import pack, unpack
from .plan import Plan
from .prg import Context, Prg, bundle_name, gate_masks, material_key, weight_mask_id, weight_masks
from .ring import Words, packed
from .session import Session, State, Step


@dataclass(frozen=True)
class PrivateModel:
    """A model as party 1 serves it: fixed-point weights and biases by layer."""

    version: str
    model: bytes
    plan: Plan
    weights: Mapping[str, Words]
    biases: Mapping[str, Words]

    @classmethod
    def of(cls, version: str, model: bytes, plan: Plan, tensors: Mapping[str, NDArray[np.float64]]) -> PrivateModel:
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


class Peers(NamedTuple):
    """Fingerprints of the certificates that a bundle is for."""

    hospital: bytes
    party: bytes
    dealer: bytes


class PartySession(Session):
    """One bundle at party 1.

    Parameters
    ----------
    peers : Peers
        Fingerprints of the certificates of caller, self and dealer.
    find : callable
        Returns the model with a hash; raises ProtocolError when it is not served.
    spend : callable
        Marks a bundle as used, durably; raises ProtocolError if it was before, Unavailable beyond the quota.
    lifetime_s : int
        How long the session will wait for the query, seconds; told to the hospital.

    Attributes
    ----------
    model : PrivateModel or None
        Known once the bundle was opened.
    signed : bytes
        The dealer's signed manifest; known once the dealer has sent it.
    """

    def __init__(
        self,
        peers: Peers,
        find: Callable[[bytes], PrivateModel],
        spend: Callable[[bytes], None],
        lifetime_s: int,
    ) -> None:
        super().__init__()
        self._peers, self._find, self._spend, self._lifetime_s = peers, find, spend, lifetime_s
        self.model: PrivateModel | None = None
        self.signed = b""
        self.state, self.awaited = State.PREPARING, [Step(Open)]

    def _forget(self) -> None:
        self._seed = self._key = b""
        self._auditable = False
        self._masks: Prg | None = None
        self._material: dict[str, Vector] = {}
        self._covered: dict[str, Words] = {}
        self._shares: dict[str, Words] = {}
        self._coming: Iterator[Message] = iter(())
        self._gates: dict[str, tuple[Words, Tables, NDArray[np.uint32], Bytes]] = {}
        self._late: deque[Callable[[], None]] = deque()
        self._outstanding = 1  # tensors, the input or results of a round's gates, that wait for party 0's shares

    def _on_open(self, message: Open) -> Message:
        if message.wants_delta not in (0, 1):
            raise ProtocolError("the hospital's request is malformed", code="malformed-message")
        model = self._find(message.model)
        self._spend(message.bundle)
        self.bundle, self.model, self._plan = message.bundle, model, model.plan
        self._wants_delta, self._digest = message.wants_delta, message.manifest
        self._layers = iter(self._plan.program.layers)
        self.awaited = self._plan.to_party()
        return Fetch(message.bundle, message.model, self._plan.digest, self._peers.hospital)

    def _on_half(self, message: Half) -> Message | None:
        assert self.model is not None
        self._seed = message.weight_mask_seed
        self._masks, self._key = gate_masks(self._seed, self.bundle), material_key(self._seed, self.bundle)
        self.signed = message.signed
        manifest = verified(self.signed, self._peers.dealer)
        manifest.require(
            bundle=self.bundle,
            digest=self._digest,
            model=self.model.model,
            program=self._plan.digest,
            hospital=self._peers.hospital,
            party=self._peers.party,
            weight_mask_id=weight_mask_id(self._seed),
        )
        if len(manifest.materials) != len(self._plan.materials):
            raise ProtocolError("the dealer's manifest is of another program", code="wrong-bundle")
        self._hashes = dict(zip(self._plan.materials, manifest.materials, strict=True))
        return self._loaded()

    def _on_material(self, message: Material) -> Message | None:
        if hashed(self._key, message.values) != self._hashes[self._step.name]:
            raise ProtocolError("the dealer's material is not what it signed", code="material-altered")
        self._material[self._step.name] = message.values
        return self._loaded()

    def _check(self, message: Message) -> None:
        if isinstance(message, Audit) and self._auditable:
            self.state, self.awaited = State.AUDITING, [Step(Audit)]
        self._auditable = False  # from the first message after `Ready` on
        super()._check(message)

    def _on_audit(self, message: Audit) -> Message:
        """Recompute what the dealer dealt: it could not know that this bundle would be looked at."""
        assert self.model is not None
        if bundle_name(message.seed) != self.bundle:
            raise ProtocolError("the hospital opened another bundle's seed", code="wrong-bundle")
        context = Context(self.bundle, self.model.model, self._peers.hospital, self._peers.party)
        made = materials(self._plan, message.seed, context, self._seed)
        if [hashed(self._key, one) for one in made] != list(self._hashes.values()):
            raise IntegrityError("the dealer signed a bundle that is none: use it no more", code="bundle-forged")
        self._end(State.DONE)
        return Audited(self.bundle)

    def _loaded(self) -> Message | None:
        """Tell the hospital, once the dealer's last message is here."""
        if self.awaited[0].kind is Material:
            return None
        blinded = self._blinded() if self._wants_delta else b""
        self._auditable = True
        if not self._plan.gates:
            self.state = State.READY
        return Ready(self.bundle, self._lifetime_s, blinded)

    def _blinded(self) -> Vector:
        """Compute W - b of every layer, one layer at a time: all at once would be held several times over."""
        assert self.model is not None
        masks, ring, weights = weight_masks(self._seed), self._plan.ring, self.model.weights
        found, start = np.empty(sum(one.size for one in weights.values()), f"u{ring.width}"), 0
        for name, weight in weights.items():
            mask = masks.words(Label.WEIGHT_MASK, self._plan.numbers[name], weight.shape, ring)
            np.subtract(weight, mask, out=found[start : start + weight.size].reshape(weight.shape))
            start += weight.size
        return ring.to_bytes([found])

    def _on_covered(self, message: Covered) -> Message | None:
        assert self._masks is not None
        self._seed = b""
        name, ring = self._step.name, self._plan.ring
        shape = self._plan.shapes[name]
        mask = self._masks.words(Label.PARTY_GATE_MASK, message.layer, shape, ring)
        covered = ring.from_bytes(message.values, shape) + mask
        if name in self._plan.directly:
            covered += self._correction(self._plan.directly[name])
        self._covered[name] = covered
        if self.awaited[0].kind is Covered:
            return None
        self.state = State.READY
        return Prepared(self.bundle)

    def _correction(self, name: str) -> Words:
        """Give what a layer's product lacks to be its result; it comes offline, and may be added to what covers it."""
        assert self.model is not None
        found: Words = self._plan.ring.from_bytes(self._material.pop(name), self._plan.shapes[name])
        return found + self.model.biases[name][:, None, None]

    def meanwhile(self) -> None:
        """Do, while party 0 works on the last answers, what can be done before its next message."""
        with self._burning():
            if self.awaited and self.awaited[0].kind is Masked:
                self._select()

    def _select(self) -> None:
        """Do what no message waits for: the selections, once all signs of a round were sent."""
        while self._late:
            self._late.popleft()()

    def _more(self) -> Message | None:
        return next(self._coming, None)

    def _on_masked(self, message: Masked) -> Message | None:
        self._select()
        name, shares = self._step.name, self._shares
        self.state, self._seed = State.QUERYING, b""
        shape, gate = self._plan.shapes[name], self._plan.gates.get(name)
        if isinstance(gate, TruncationGate):
            # Only multiples of 2^(bits - shift) separate party 0's share from its fresh mask.
            high = gate.ring.bits - gate.shift
            masked = unpack(message.values, gate.size, gate.shift, f"u{gate.ring.width}", low=high).reshape(shape)
        else:
            masked = self._plan.ring.from_bytes(message.values, shape)
        # Without a share of its own (the input), party 1 holds x - r at once; else its share of the gate's result adds.
        shares[name] = masked + shares[name] if name in shares else masked
        self._outstanding -= 1
        if self._outstanding:
            return None
        self._coming = self._advance()
        return next(self._coming)

    def _advance(self) -> Iterator[Message]:
        """Compute up to the results of the next round of gates, or to the output."""
        assert self.model is not None
        plan, shares = self._plan, self._shares
        for layer in self._layers:
            name, given = layer.name, [shares[one] for one in sources(layer)]
            if isinstance(layer, Gated):
                yield from self._shift(name, given[0])
                if name in (names[-1] for names in plan.rounds):
                    return
            elif name in plan.weighted:
                shares[name] = weigh(plan.weighted[name], given[0], self.model.weights[name])
                if name not in plan.directly.values():
                    shares[name] += self._correction(name)
            else:
                shares[name] = local(layer, given)
            if isinstance(layer, GuardLayer):
                limits = plan.ring.encode(np.array(layer.limits), plan.fractions[name])
                shares[name] = shares[name] - limits[:, None, None]
        values = plan.ring.to_bytes([shares[one] for one in plan.opened])
        bundle = self.bundle
        self._end(State.DONE)
        yield Output(bundle, values)

    def _shift(self, name: str, share: Words) -> Iterator[Message]:
        gate, number = self._plan.gates[name], self._plan.numbers[name]
        opened = gate.reduced((self._covered.pop(name) + share).reshape(-1))
        block = np.frombuffer(self._material.pop(name), np.uint8)
        self._outstanding += 1
        if isinstance(gate, TruncationGate):
            tops, result = gate.truncate(opened, block)
            self._shares[name] = result.reshape(self._plan.shapes[name])
            yield Tops(self.bundle, number, packed(pack(tops, 1)))
            return
        yield Shifted(self.bundle, number, packed(pack(opened, gate.seen_bits, gate.low)))
        tables = gate.view(block)
        bits, highest = gate.compare(opened, tables)
        self._gates[name] = opened, tables, bits, highest
        yield Digits(self.bundle, number, packed(pack(bits, gate.joined_bits)))

    def _on_bits(self, message: Bits) -> Message:
        name, gate = self._step.name, self._plan.gates[self._step.name]
        assert isinstance(gate, ReluGate)
        opened, tables, bits, highest = self._gates.pop(name)
        theirs = unpack(message.values, gate.size, gate.joined_bits + gate.comparisons, "u4")
        joined = bits ^ (theirs & np.uint32((1 << gate.joined_bits) - 1))
        signs = gate.sign(opened, tables, joined, highest, 1)
        both: Bytes = signs ^ (theirs >> np.uint32(gate.joined_bits)).astype(np.uint8)

        def select() -> None:
            outcomes = gate.outcomes(opened, tables, 1)
            self._shares[name] = gate.choose(outcomes, tables, both, 1).reshape(self._plan.shapes[name])

        self._late.append(select)
        return Signs(self.bundle, message.layer, packed(pack(signs, gate.comparisons)))
