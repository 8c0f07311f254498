"""A network so small that its result is known, run by all three roles in this process when a service starts.

It shows that the compiled loops compute what they should on this machine, and it has them compiled (or read from their
cache) before a peer waits: the first compilation takes seconds, which would pass for a time-out.
"""

from __future__ import annotations

import os

import numpy as np

from dicom_node.core.errors import IntegrityError

from ..program import INPUT, ConvolutionLayer, DenseLayer, FlattenLayer, NetworkProgram, ReluLayer
from .dealer import Deck
from .network0 import NetworkHospital
from .network1 import NetworkParty, PrivateNetwork
from .network_plan import NetworkPlan
from .party0 import Terms
from .session import State

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
    program = NetworkProgram(
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
    weights = {
        "double.weight": np.full((1, 1, 1, 1), 2.0),
        "double.bias": np.array([1.0]),
        "sum.weight": np.ones((1, 2)),
        "sum.bias": np.array([0.0]),
    }
    plan = NetworkPlan(program)
    model = PrivateNetwork.of("self-test", MODEL, plan, weights)
    deck = Deck(bytes(32), frozenset({HOSPITAL}), frozenset({PARTY}), lifetime_s=1, largest=1, random=os.urandom)
    hospital = NetworkHospital(Terms(plan, MODEL, HOSPITAL, PARTY, lambda _: None, {}), os.urandom)
    party = NetworkParty(HOSPITAL, lambda _: model, lambda _: None, 1)
    opening = hospital.handle(deck.handle(HOSPITAL, hospital.begin(), 0.0))
    assert opening is not None
    fetch = party.handle(opening)
    assert fetch is not None
    answers = [party.handle(part) for part in deck.answers(PARTY, fetch, 0.0)]
    assert answers[-1] is not None
    hospital.handle(answers[-1])
    for covered in hospital.covers():
        party.handle(covered)
    asked = hospital.query(np.array([1.0, -1.0]).reshape(1, 1, 2))[0]
    while hospital.state is not State.DONE:
        answer = party.handle(asked)
        assert answer is not None
        asked = hospital.handle(answer)  # type: ignore[assignment]  # its last answer is None
    # A gate may be one unit in the last place too large.
    if hospital.outputs is None or not 3.0 <= float(hospital.outputs[0, 0]) <= 3.0 + 2.0**-8:
        raise IntegrityError("the self-test of encrypted inference gave a wrong result", code="self-test")
