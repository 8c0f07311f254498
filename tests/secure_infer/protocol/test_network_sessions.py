"""Every message of a network's course, exchanged for a wrong one, burns the bundle on the side that receives it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError
from secure_infer.protocol.messages import KINDS, Deal, Failure, Fetch, Message
from secure_infer.protocol.network0 import NetworkHospital
from secure_infer.protocol.network1 import NetworkParty
from secure_infer.protocol.session import Session, State
from tests.secure_infer.small_model import HOSPITAL
from tests.secure_infer.small_network import NetworkTrio, every_kind, weights_of

MADE = every_kind()
IMAGE = np.random.default_rng(5).uniform(-1, 1, MADE.input_shape)


def fixed():
    """Bytes that look random and are the same at each replay."""
    numbers = itertools.count()
    return lambda size: hashlib.shake_128(f"replay {next(numbers)}".encode()).digest(size)


def course() -> NetworkTrio:
    trio = NetworkTrio(MADE, weights_of(MADE), random=fixed())
    trio.ask(IMAGE)
    return trio


COURSE = course()
TO = {role: [m for way, m in COURSE.transcript if way.endswith(role)] for role in ("P0", "P1")}
STEPS = [(role, step) for role, messages in TO.items() for step in range(len(messages))]


def session_before(role: str, step: int) -> Session:
    """The session of a role that has taken the first messages of the course."""
    terms = dataclasses.replace(COURSE.terms, deltas={})
    session: NetworkHospital | NetworkParty
    if role == "P0":
        session = NetworkHospital(terms, fixed())
        session.begin()
    else:
        session = NetworkParty(HOSPITAL, lambda _: COURSE.model, lambda _: None, 600)
    for message in TO[role][:step]:
        handled(session, message)
    if role == "P0" and session.state is State.READY:
        list(session.covers())
        session.query(IMAGE)
    return session


def handled(session: Session, message: Message) -> None:
    session.handle(message)
    if isinstance(session, NetworkHospital) and session.state is State.READY:
        list(session.covers())
        session.query(IMAGE)


def test_the_course_replays():
    for role, messages in TO.items():
        assert session_before(role, len(messages)).state is State.DONE


@pytest.mark.parametrize(("role", "step"), STEPS)
def test_a_wrong_message_in_place_of_the_right_one_burns_the_bundle(role, step):
    right = TO[role][step]
    wrong: list[Message] = []
    if step:
        wrong.append(dataclasses.replace(right, bundle=b"X" * 16))
    if hasattr(right, "layer"):
        wrong += [dataclasses.replace(right, layer=right.layer + 1), dataclasses.replace(right, layer=0xFFFF)]
    for name in ("values", "deltas"):
        if data := bytes(getattr(right, name, b"")):
            wrong += [
                dataclasses.replace(right, **{name: data[:-1]}),
                dataclasses.replace(right, **{name: data + b"0"}),
            ]
    wrong += [m for m in TO["P0"] + TO["P1"] if type(m) is not type(right)][:40]
    assert {type(one) for one in wrong} >= set(KINDS.values()) - {type(right), Deal, Fetch, Failure}
    for message in wrong[: None if step < 12 else 8]:
        session = session_before(role, step)
        with pytest.raises(ProtocolError):
            session.handle(message)
        assert session.state is State.ABORTED
        with pytest.raises(ProtocolError):
            session.handle(right)


@pytest.mark.parametrize(("role", "step"), STEPS[::3])
def test_a_burned_session_of_a_network_holds_no_secret(role, step):
    session = session_before(role, step)
    session.abort()
    kept = [name for name, value in vars(session).items() if isinstance(value, np.ndarray) and value.size]
    assert kept == []
    for name in ("_masks", "_tables", "_covered", "_outputs", "_material", "_shares"):
        assert not getattr(session, name, None)


def test_bits_without_meaning_are_refused():
    # The last one: those of the guard's three values do not fill their bytes.
    step = max(i for i, one in enumerate(TO["P1"]) if type(one).__name__ == "Bits")
    session, right = session_before("P1", step), TO["P1"][step]
    values = bytearray(right.values)
    values[-1] |= 0x80
    with pytest.raises(ProtocolError):
        session.handle(dataclasses.replace(right, values=bytes(values)))
    assert session.state is State.ABORTED


def test_the_hospital_does_not_query_before_party_1_has_its_covered_shares():
    hospital = NetworkHospital(dataclasses.replace(COURSE.terms, deltas={}), fixed())
    hospital.begin()
    for message in TO["P0"][:2]:
        hospital.handle(message)
    with pytest.raises(ProtocolError):
        hospital.query(IMAGE)
    assert hospital.state is State.ABORTED
