"""Party 0, the hospital: masks the image, takes part in the gates, opens the output (state machine without I/O).

It knows its share of every tensor ahead of the query (`README.md`, "The linear layer").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from dicom_node.core.errors import IntegrityError, ProtocolError, Refused

from ..program import INPUT, Gated, sources
from .deal import masks_of
from .gate import Bytes, ReluGate, TruncationGate
from .layers import local, weigh
from .manifest import verified
from .messages import (
    Audit,
    Audited,
    Bits,
    Bundle,
    Covered,
    Deal,
    Digits,
    Label,
    Masked,
    Message,
    Open,
    Output,
    Prepared,
    Ready,
    Shifted,
    Signs,
    Tops,
)
from .packing import pack, unpack
from .plan import Plan
from .prg import Context, bundle_masks, bundle_name
from .ring import Words, packed
from .seal import unseal
from .session import Session, State, Step

#: Outputs beyond the card's bound by more than rounding explains are not the model's.
TOLERANCE = 1.25


@dataclass(frozen=True)
class Terms:
    """What all of a hospital's sessions with one model share.

    Attributes
    ----------
    plan : Plan
    model : bytes
        SHA-256 of the model card.
    hospital, party : bytes
        Fingerprints of the two certificates.
    dealer : bytes
        Fingerprint of the certificate with which the dealer signs.
    key : X25519PrivateKey
        To its public half, the dealer seals seeds.
    spend : callable
        Marks a bundle as used, durably; raises ProtocolError if it was before.
    deltas : mutable mapping
        Blinded weights by the identifier of their mask; filled by the first session.
    """

    plan: Plan
    model: bytes
    hospital: bytes
    party: bytes
    dealer: bytes
    key: X25519PrivateKey
    spend: Callable[[bytes], None]
    deltas: MutableMapping[bytes, list[Words]]


class HospitalSession(Session):
    """One query from the dealer's half to the opened output.

    Parameters
    ----------
    terms : Terms

    Attributes
    ----------
    signed : bytes
        The dealer's signed manifest; known once the bundle is.
    lifetime_s : int
        How long party 1 waits for the query, seconds; known once the state is `READY`.
    outputs : ndarray of float64, shape (channels, rows, columns)
        The opened output, once the state is `DONE`.
    """

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self._terms, self._plan = terms, terms.plan
        self.lifetime_s, self.signed = 0, b""
        self.outputs: NDArray[np.float64] | None = None

    def _forget(self) -> None:
        self._seed = b""
        self._masks: dict[str, Words] = {}
        self._tables: dict[str, Bytes] = {}
        self._covered: dict[str, Words] = {}
        self._outputs: list[Words] = []
        self._gates: dict[str, tuple[Words, NDArray[np.uint32], Bytes]] = {}
        self._outcomes: dict[str, Words] = {}

    def begin(self) -> Deal:
        """Ask the dealer for a bundle."""
        with self._burning(State.NEW):
            self.state, self.awaited = State.PREPARING, [Step(Bundle, size=self._plan.largest_signed)]
            sealing_key = self._terms.key.public_key().public_bytes_raw()
            return Deal(self._terms.model, self._terms.party, sealing_key, self._plan.encoded)

    def _on_bundle(self, message: Bundle) -> Message:
        terms, plan = self._terms, self._plan
        manifest = verified(message.signed, terms.dealer)
        manifest.require(
            bundle=message.bundle,
            model=terms.model,
            program=plan.digest,
            hospital=terms.hospital,
            party=terms.party,
            sealing_key=terms.key.public_key().public_bytes_raw(),
        )
        self.bundle, self._weight_mask = manifest.bundle, manifest.weight_mask_id
        self.signed = message.signed
        terms.spend(self.bundle)
        self._seed = unseal(message.sealed, terms.key, manifest.digest)
        if bundle_name(self._seed) != self.bundle:  # a seed that was dealt before must show itself by its name
            raise ProtocolError("the bundle's name is not its seed's", code="wrong-bundle")
        ready = plan.to_hospital()[0]
        self._deltas = terms.deltas.get(self._weight_mask)
        self.awaited = [ready if self._deltas is None else ready._replace(size=0)]
        return Open(self.bundle, terms.model, manifest.digest, int(self._deltas is None))

    def ahead(self) -> None:
        """Do, while party 1 fetches its half, what `_on_ready` would do; the first time it cannot be done before."""
        with self._burning(State.PREPARING):
            if self._deltas is not None and not self._masks:
                self._prepare(self._deltas)

    def _on_ready(self, message: Ready) -> None:
        terms, plan = self._terms, self._plan
        if self._deltas is None:
            self._deltas = plan.ring.split(message.values, plan.weight_shapes())
            terms.deltas.clear()  # one model has one mask; another one means that the dealer's key was changed
            terms.deltas[self._weight_mask] = self._deltas
        self.ahead()
        self.lifetime_s = message.lifetime_s
        self.state, self.awaited = State.READY, plan.to_hospital()[1:]

    def audit(self) -> Audit:
        """Give the bundle up for a test of the dealer: open its seed to party 1, which holds all of it by now."""
        with self._burning(State.READY):
            self.state, self.awaited = State.AUDITING, [Step(Audited)]
            return Audit(self.bundle, self._seed)

    def _on_audited(self, message: Audited) -> None:
        self._end(State.DONE)

    def _prepare(self, blinded: list[Words]) -> None:
        """Compute ahead all that does not depend on the image."""
        terms = self._terms
        context = Context(self.bundle, terms.model, terms.hospital, terms.party)
        bundle, deltas = bundle_masks(self._seed, context), dict(zip(self._plan.weighted, blinded, strict=True))
        plan, numbers = self._plan, self._plan.numbers
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
        self._outputs = [shares[one] for one in plan.opened]

    def covers(self) -> Iterator[Message]:
        """Give the covered shares, which party 1 needs before the query."""
        with self._burning(State.READY):
            self._seed = b""  # it has done its work: what was not audited now never will be
            for name in self._plan.gates:
                values = self._plan.ring.to_bytes([self._covered.pop(name)])
                yield Covered(self.bundle, self._plan.numbers[name], values)

    def _on_prepared(self, message: Prepared) -> None:
        if self._covered:
            raise ProtocolError("party 1 cannot have all covered shares yet", code="out-of-order")

    def query(self, image: NDArray[np.float64]) -> Masked:
        """Mask the input; afterwards the session waits for the output, or for the first gate.

        Parameters
        ----------
        image : ndarray of float64, shape (channels, rows, columns)
            Checked against the program by the engine.
        """
        with self._burning(State.READY):
            if self._covered or self.awaited[0].kind is Prepared:
                raise ProtocolError("party 1 has no covered shares yet", code="out-of-order")
            masked = self._masked(INPUT, self._plan.ring.encode(image, self._plan.program.fraction_bits))
            self.state = State.QUERYING
            return masked

    def meanwhile(self) -> None:
        """Do, while party 1 works on the last message, what the answer to it does not decide."""
        with self._burning(State.QUERYING):
            if self.awaited[0].kind is Signs:
                self._foresee(self.awaited[0].name)

    def _masked(self, name: str, share: Words) -> Masked:
        values = self._plan.ring.to_bytes([share - self._masks.pop(name)])
        return Masked(self.bundle, self._plan.numbers[name], values)

    def _on_tops(self, message: Tops) -> Message:
        name = self._step.name
        gate = self._plan.gates[name]
        assert isinstance(gate, TruncationGate)
        answer = gate.answer(unpack(message.values, gate.size, 1, "u1"), self._tables.pop(name))
        del self._masks[name]  # party 0's share from here on, and all but the answer's bits of it need no message
        return Masked(self.bundle, message.layer, packed(pack(answer, gate.shift)))

    def _on_shifted(self, message: Shifted) -> None:
        name, gate = self._step.name, self._relu(self._step.name)
        opened = unpack(message.values, gate.size, gate.seen_bits, f"u{gate.ring.width}", low=gate.low)
        self._gates[name] = opened, *gate.compare(opened, gate.view(self._tables[name]))

    def _on_digits(self, message: Digits) -> Message:
        name, gate = self._step.name, self._relu(self._step.name)
        opened, bits, highest = self._gates[name]
        theirs = unpack(message.values, gate.size, gate.joined_bits, "u4")
        signs = gate.sign(opened, gate.view(self._tables[name]), bits ^ theirs, highest, 0)
        self._gates[name] = opened, bits, signs
        sent = bits | (signs.astype(np.uint32) << np.uint32(gate.joined_bits))
        return Bits(self.bundle, message.layer, packed(pack(sent, gate.joined_bits + gate.comparisons)))

    def _on_signs(self, message: Signs) -> Message:
        name, gate = self._step.name, self._relu(self._step.name)
        self._foresee(name)
        _, _, ours = self._gates.pop(name)
        signs = ours ^ unpack(message.values, gate.size, gate.comparisons, "u1")
        share = gate.choose(self._outcomes.pop(name), gate.view(self._tables.pop(name)), signs, 0)
        return self._masked(name, share.reshape(self._plan.shapes[name]))

    def _relu(self, name: str) -> ReluGate:
        gate = self._plan.gates[name]
        assert isinstance(gate, ReluGate)
        return gate

    def _foresee(self, name: str) -> None:
        """Compute the shares of a gate's result for either sign, once."""
        if name not in self._outcomes:
            gate = self._relu(name)
            self._outcomes[name] = gate.outcomes(self._gates[name][0], gate.view(self._tables[name]), 0)

    def _on_output(self, message: Output) -> None:
        plan, program = self._plan, self._plan.program
        theirs = plan.ring.split(message.values, [plan.shapes[one] for one in plan.opened])
        opened, *guard = (ours + other for ours, other in zip(self._outputs, theirs, strict=True))
        if any(one.any() for one in guard):
            raise Refused("this image leaves the range in which the model is proven", code="features-out-of-range")
        values = plan.ring.decode(opened, plan.fractions[program.output])
        if (np.abs(values) > TOLERANCE * program.output_bound).any():
            # Not a ProtocolError, which would be tried again: party 1, who chose this share, would see by the second
            # query in which range the true output lies.
            raise IntegrityError(
                "the opened output is beyond the model's bound: party 1 or the dealer did not follow the protocol",
                code="output-out-of-range",
            )
        self.outputs = values
        self._end(State.DONE)
