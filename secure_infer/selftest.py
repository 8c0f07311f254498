"""A network so small that its result is known, run by all three roles in this process when a service starts.

It shows that the compiled loops compute what they should on this machine, and it has them compiled (or read from their
cache) before a peer waits: the first compilation takes seconds, which would pass for a time-out.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dicom_node.core import pki
from dicom_node.core.errors import IntegrityError

from .dealing.deck import Deck
from .dealing.stock import Fresh
from .program import INPUT, ConvolutionLayer, DenseLayer, FlattenLayer, Program, ReluLayer
from .protocol.dealer import Dealing
from .protocol.manifest import Signer
from .protocol.messages import Message
from .protocol.party0 import HospitalSession, Terms
from .protocol.party1 import PartySession, Peers, PrivateModel
from .protocol.plan import Plan
from .protocol.session import Session

#: Names of nobody: what is computed here is not secret.
HOSPITAL, PARTY, MODEL = bytes(32), bytes([1]) * 32, bytes([2]) * 32
SHIFTS = {64: 26, 32: 10}


def run(ring_bits: int) -> None:
    """Evaluate relu(2·(1, -1) + 1) summed, which is 3, in a ring.

    Raises
    ------
    IntegrityError
        The result is another one (``self-test``): this installation must not compute.
    """
    shift = SHIFTS[ring_bits]
    program = Program(
        ring_bits=64 if ring_bits == 64 else 32,
        input_shape=(1, 1, 2),
        fraction_bits=8,
        weight_fraction_bits=shift,
        input_bound=1.0,
        output_bound=8.0,
        output="sum",
        layers=(
            ConvolutionLayer(name="double", source=INPUT, out_channels=1, kernel=(1, 1)),
            ReluLayer(name="gate", source="double", shift=shift),
            FlattenLayer(name="flat", source="gate"),
            DenseLayer(name="sum", source="flat", out_features=1),
        ),
    )
    weights = {"double.weight": np.full((1, 1, 1, 1), 2.0), "double.bias": np.ones(1)}
    weights |= {"sum.weight": np.ones((1, 2)), "sum.bias": np.zeros(1)}
    plan = Plan(program)
    model = PrivateModel.of("self-test", MODEL, plan, weights)
    key = Ed25519PrivateKey.generate()
    dealing = Dealing(bytes(32), Signer(pki.self_signed("self-test", key), key), os.urandom)
    deck = Deck(dealing, Fresh(dealing), frozenset({HOSPITAL}), frozenset({PARTY}), lifetime_s=1, largest=1)
    dealer, sealing_key = dealing.signer.fingerprint, X25519PrivateKey.generate()
    hospital = HospitalSession(Terms(plan, MODEL, HOSPITAL, PARTY, dealer, sealing_key, lambda _: None, {}))
    party = PartySession(Peers(HOSPITAL, PARTY, dealer), lambda _: model, lambda _: None, 1)
    fetch = _told(party, _told(hospital, deck.handle(HOSPITAL, hospital.begin(), 0.0)))
    assert fetch is not None
    for part in deck.answers(PARTY, fetch, 0.0):
        ready = party.handle(part)
    _told(hospital, ready)
    for covered in hospital.covers():
        for prepared in party.answers(covered):
            hospital.handle(prepared)
    asked: list[Message] = [hospital.query(np.array([[[1.0, -1.0]]]))]
    while asked:
        told = [answer for one in asked for answer in party.answers(one)]
        asked = [answer for one in told for answer in hospital.answers(one)]
    # A gate may be one unit in the last place too large.
    if hospital.outputs is None or not 3.0 <= hospital.outputs.item() <= 3.0 + 2.0**-8:
        raise IntegrityError("the self-test of encrypted inference gave a wrong result", code="self-test")


def _told(session: Session, message: Message | None) -> Message | None:
    assert message is not None
    return session.handle(message)
