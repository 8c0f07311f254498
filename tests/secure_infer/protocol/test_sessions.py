"""Every message of a query's course, exchanged for a wrong one, burns the bundle on the side that receives it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError
from secure_infer.protocol.messages import (
    KINDS,
    Audit,
    Audited,
    Deal,
    Failure,
    Fetch,
    Message,
    Open,
    Prepared,
    Ready,
    TupleDeal,
)
from secure_infer.protocol.party0 import HospitalSession
from secure_infer.protocol.party1 import PartySession
from secure_infer.protocol.session import Session, State
from tests.secure_infer.protocol.test_messages import SAMPLES
from tests.secure_infer.small_model import head, weights_of
from tests.secure_infer.small_network import HOSPITAL, MODEL, PARTY, Trio, every_kind

MADE = every_kind()
IMAGE = np.random.default_rng(5).uniform(-1, 1, MADE.input_shape)


def fixed():
    """Bytes that look random and are the same at each replay."""
    numbers = itertools.count()
    return lambda size: hashlib.shake_128(f"replay {next(numbers)}".encode()).digest(size)


def course() -> Trio:
    trio = Trio(MADE, weights_of(MADE), random=fixed())
    trio.ask(IMAGE)
    return trio


COURSE = course()
TO = {role: [m for way, m in COURSE.transcript if way.endswith(role)] for role in ("P0", "P1")}
STEPS = [(role, step) for role, messages in TO.items() for step in range(len(messages))]


def session_before(role: str, step: int) -> Session:
    """The session of a role that has taken the first messages of the course."""
    terms = dataclasses.replace(COURSE.terms, deltas={})
    session: HospitalSession | PartySession
    if role == "P0":
        session = HospitalSession(terms)
        session.begin()
    else:
        session = PartySession(COURSE.peers, lambda _: COURSE.model, lambda _: None, 600)
    for message in TO[role][:step]:
        handled(session, message)
    return session


def handled(session: Session, message: Message) -> None:
    list(session.answers(message))
    if isinstance(session, HospitalSession) and isinstance(message, Ready):
        list(session.covers())
    if isinstance(session, HospitalSession) and isinstance(message, Prepared):
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
    if data := bytes(getattr(right, "values", b"")):
        wrong += [dataclasses.replace(right, values=one) for one in (data[:-1], data + b"0", b"")]
    if signed := getattr(right, "signed", b""):
        altered = bytes([*signed[:100], signed[100] ^ 1, *signed[101:]])
        wrong += [dataclasses.replace(right, signed=one) for one in (altered, signed[:-1], b"")]
    if hasattr(right, "sealed"):
        wrong += [dataclasses.replace(right, bundle=b"X" * 16), dataclasses.replace(right, sealed=bytes(80))]
    wrong += [SAMPLES[kind] for kind in (Deal, Fetch, Audit, Audited, Failure)]
    wrong += {type(m): m for m in TO["P0"] + TO["P1"] if type(m) is not type(right)}.values()
    wrong += [one for kind, one in SAMPLES.items() if kind.KIND >= TupleDeal.KIND]
    assert {type(one) for one in wrong} >= set(KINDS.values()) - {type(right)}
    for message in wrong:
        session = session_before(role, step)
        with pytest.raises(ProtocolError):
            session.handle(message)
        assert session.state is State.ABORTED
        with pytest.raises(ProtocolError):
            session.handle(right)


@pytest.mark.parametrize(("role", "step"), STEPS[::3])
def test_a_burned_session_holds_no_secret(role, step):
    session = session_before(role, step)
    session.abort()
    kept = [name for name, value in vars(session).items() if isinstance(value, np.ndarray) and value.size]
    assert kept == []
    for name in ("_seed", "_masks", "_tables", "_covered", "_outputs", "_material", "_shares"):
        assert not getattr(session, name, None)
    for name in ("_gates", "_outcomes", "_late"):
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
    hospital = HospitalSession(dataclasses.replace(COURSE.terms, deltas={}))
    hospital.begin()
    for message in TO["P0"][:2]:
        hospital.handle(message)
    with pytest.raises(ProtocolError):
        hospital.query(IMAGE)
    assert hospital.state is State.ABORTED
    with pytest.raises(ProtocolError):
        session_before("P0", 2).query(IMAGE)  # sent, and not acknowledged


def test_covered_shares_are_not_acknowledged_before_they_were_sent():
    hospital = HospitalSession(dataclasses.replace(COURSE.terms, deltas={}))
    hospital.begin()
    for message in TO["P0"][:2]:
        hospital.handle(message)
    assert isinstance(TO["P0"][2], Prepared)
    with pytest.raises(ProtocolError):
        hospital.handle(TO["P0"][2])
    assert hospital.state is State.ABORTED


@pytest.mark.parametrize("step", range(len(TO["P0"]) + 1))
def test_the_hospital_can_query_only_a_ready_session_and_only_once(step):
    session = HospitalSession(dataclasses.replace(COURSE.terms, deltas={}))
    with pytest.raises(ProtocolError):
        session.query(IMAGE)
    assert session.state is State.ABORTED
    session = session_before("P0", step)  # which has asked already, where it could
    with pytest.raises(ProtocolError):
        session.query(IMAGE)
    assert session.state in (State.ABORTED, State.DONE)


def test_a_bundle_is_asked_for_once():
    session = session_before("P0", 0)
    with pytest.raises(ProtocolError):
        session.begin()
    assert session.state is State.ABORTED


@pytest.mark.parametrize("flag", [2, 255])
def test_a_request_with_a_flag_that_has_no_meaning_is_refused_before_the_bundle_is_spent(flag):
    spent: list[bytes] = []
    session = PartySession(COURSE.peers, lambda _: COURSE.model, spent.append, 600)
    with pytest.raises(ProtocolError):
        session.handle(Open(b"B" * 16, MODEL, bytes(32), flag))
    assert (session.state, spent) == (State.ABORTED, [])


def small() -> Trio:
    made = head(3, 2)
    return Trio(made, weights_of(made))


def test_blinded_weights_come_once_and_are_refused_when_nobody_asked_for_them():
    one = small()
    one.prepare()
    ready = one.transcript[-1][1]
    session = one.hospital()
    opening = session.handle(one.deck.handle(HOSPITAL, session.begin(), 0.0))
    assert opening.wants_delta == 0
    with pytest.raises(ProtocolError) as caught:
        session.handle(dataclasses.replace(ready, bundle=opening.bundle))
    assert caught.value.code == "wrong-size"
    hospital, _ = one.prepare()
    assert one.transcript[-1][1].values == b""
    assert hospital.state is State.READY


def test_a_bundle_that_a_side_has_seen_before_is_refused_by_it():
    def spent(_: bytes) -> None:
        raise ProtocolError("this bundle was used before", code="bundle-reused")

    one = small()
    one.spend = spent
    one.terms = dataclasses.replace(one.terms, spend=spent)
    hospital = one.hospital()
    bundle = one.deck.handle(HOSPITAL, hospital.begin(), 0.0)
    for session, message in ((hospital, bundle), (one.party(), Open(bundle.bundle, MODEL, bytes(32), 1))):
        with pytest.raises(ProtocolError) as caught:
            session.handle(message)
        assert caught.value.code == "bundle-reused"
        assert session.state is State.ABORTED


def test_two_first_sessions_at_once_may_both_ask_for_the_blinded_weights():
    one = small()
    hospitals = [one.hospital() for _ in range(2)]
    openings = [each.handle(one.deck.handle(HOSPITAL, each.begin(), 0.0)) for each in hospitals]
    assert [opening.wants_delta for opening in openings] == [1, 1]
    for each, opening in zip(hospitals, openings, strict=True):
        party = one.party()
        for part in one.deck.answers(PARTY, party.handle(opening), 0.0):
            ready = party.handle(part)
        each.handle(ready)
        one.ask(np.zeros((3, 2, 2)), (each, party))
        assert each.state is State.DONE
