"""Every message in every state of every role: legal, or an error that burns the bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError, Unavailable, VeilRayError
from secure_infer.protocol.messages import (
    KINDS,
    Bits,
    Bundle,
    Covered,
    Deal,
    Failure,
    Fetch,
    Half,
    Masked,
    Material,
    Open,
    Output,
    Ready,
    Shifted,
    Signs,
    Tops,
    decode,
    room,
)
from secure_infer.protocol.party0 import ChainHospital
from secure_infer.protocol.party1 import PartySession
from secure_infer.protocol.session import Session, State
from tests.secure_infer.small_model import HOSPITAL, MODEL, PARTY, Trio, program, random_weights

MADE = program(3, 2, columns=4)
COLUMNS = np.zeros((3, 4))


def trio() -> Trio:
    return Trio(MADE, random_weights(MADE))


def sample(kind: type, bundle: bytes = b"B" * 16):
    """A well-formed message of each kind."""
    return {
        Deal: Deal(b"s" * 16, MODEL, PARTY, trio().plan.encoded),
        Bundle: Bundle(bundle, b"e" * 32, b"i" * 16),
        Open: Open(bundle, MODEL, 1),
        Fetch: Fetch(bundle, MODEL, trio().plan.digest, HOSPITAL),
        Half: Half(bundle, b"w" * 32, bytes(2 * 4 * 8)),
        Ready: Ready(bundle, 60, bytes(2 * 3 * 8)),
        Masked: Masked(bundle, 0, bytes(3 * 4 * 8)),
        Output: Output(bundle, bytes(2 * 4 * 8)),
        Failure: Failure(1, b"protocol"),
        **{one: one(bundle, 0, bytes(16)) for one in (Material, Covered, Shifted, Bits, Signs, Tops)},
    }[kind]


def hospital_in(state: State) -> ChainHospital:
    session = ChainHospital(trio().terms, lambda size: b"r" * size)
    if state is State.NEW:
        return session
    session.begin()
    if state is State.DEALING:
        return session
    session.handle(sample(Bundle))
    if state is State.OPENING:
        return session
    session.handle(sample(Ready))
    if state is State.READY:
        return session
    session.query(COLUMNS)
    if state is State.QUERYING:
        return session
    # The opened value is noise here, since the halves were made up; only the state is looked at.
    session._layers = [dataclasses.replace(one, share=one.share * 0) for one in session._layers]
    session.handle(sample(Output))
    return session


def party_in(state: State) -> PartySession:
    one = trio()
    session = PartySession(HOSPITAL, lambda _: one.model, lambda _: None, 60)
    for step, kind in ((State.FETCHING, Open), (State.READY, Half), (State.DONE, Masked)):
        if session.state is state:
            return session
        session.handle(sample(kind))
        assert session.state is step
    return session


def aborted(session: Session) -> Session:
    session.abort()
    return session


HOSPITAL_STATES = (State.NEW, State.DEALING, State.OPENING, State.READY, State.QUERYING, State.DONE)
PARTY_STATES = (State.NEW, State.FETCHING, State.READY, State.DONE)
LEGAL = {
    ("hospital", State.DEALING, Bundle): State.OPENING,
    ("hospital", State.OPENING, Ready): State.READY,
    ("hospital", State.QUERYING, Output): State.DONE,
    ("party", State.NEW, Open): State.FETCHING,
    ("party", State.FETCHING, Half): State.READY,
    ("party", State.READY, Masked): State.DONE,
}
EVERY = [
    (role, state, kind)
    for role, states in (("hospital", HOSPITAL_STATES), ("party", PARTY_STATES))
    for state in (*states, State.ABORTED)
    for kind in KINDS.values()
]


def session_in(role: str, state: State) -> Session:
    make = hospital_in if role == "hospital" else party_in
    session = aborted(make(State.READY)) if state is State.ABORTED else make(state)
    assert session.state is state
    return session


@pytest.mark.parametrize(("role", "state", "kind"), EVERY)
def test_a_message_is_legal_in_one_state_and_burns_the_bundle_in_all_others(role, state, kind):
    session = session_in(role, state)
    if role == "hospital" and (state, kind) == (State.QUERYING, Output):
        session._layers = [dataclasses.replace(one, share=one.share * 0) for one in session._layers]
    after = LEGAL.get((role, state, kind))
    if after is not None:
        session.handle(sample(kind))
        assert session.state is after
        return
    with pytest.raises(ProtocolError) as caught:
        session.handle(sample(kind))
    assert caught.value.code == "out-of-order"
    # A finished session stays finished: its bundle was used up by the query itself.
    assert session.state is (State.DONE if state is State.DONE else State.ABORTED)


@pytest.mark.parametrize("state", [*HOSPITAL_STATES, State.ABORTED])
def test_the_hospital_can_query_only_a_ready_session_and_only_once(state):
    session = session_in("hospital", state)
    if state is State.READY:
        session.query(COLUMNS)
        assert session.state is State.QUERYING
    with pytest.raises(ProtocolError):
        session.query(COLUMNS)
    assert session.state in (State.ABORTED, State.DONE)


@pytest.mark.parametrize(("role", "state", "kind"), [key for key in LEGAL if key[2] not in (Bundle, Open)])
def test_a_message_about_another_bundle_burns_both(role, state, kind):
    session = session_in(role, state)
    with pytest.raises(ProtocolError) as caught:
        session.handle(sample(kind, b"X" * 16))
    assert caught.value.code == "wrong-bundle"
    assert session.state is State.ABORTED


@pytest.mark.parametrize(
    ("role", "state", "message"),
    [
        ("hospital", State.OPENING, Ready(b"B" * 16, 60, bytes(2 * 3 * 8 - 1))),
        ("hospital", State.OPENING, Ready(b"B" * 16, 60, b"")),
        ("hospital", State.QUERYING, Output(b"B" * 16, bytes(2 * 4 * 8 + 8))),
        ("party", State.FETCHING, Half(b"B" * 16, b"w" * 32, bytes(8))),
        ("party", State.READY, Masked(b"B" * 16, 0, bytes(3 * 4 * 8 + 8))),
        ("party", State.READY, Masked(b"B" * 16, 1, bytes(3 * 4 * 8))),
        ("party", State.NEW, Open(b"B" * 16, MODEL, 2)),
    ],
)
def test_a_message_of_the_wrong_size_layer_or_flag_burns_the_bundle(role, state, message):
    session = session_in(role, state)
    with pytest.raises(ProtocolError):
        session.handle(message)
    assert session.state is State.ABORTED


def test_blinded_weights_that_nobody_asked_for_are_refused():
    one = trio()
    one.prepare()
    session = ChainHospital(one.terms, lambda size: b"r" * size)
    bundle = one.deck.handle(HOSPITAL, session.begin(), 0.0)
    opening = session.handle(bundle)
    assert opening.wants_delta == 0
    with pytest.raises(ProtocolError):
        session.handle(Ready(opening.bundle, 60, bytes(2 * 3 * 8)))


def test_a_burned_session_holds_no_secret():
    one = trio()
    hospital, party = one.prepare()
    hospital.abort()
    party.abort()
    assert hospital._layers == []
    assert hospital._half.seed == bytes(32)
    assert party._corrections == []


def test_a_bundle_that_a_side_has_seen_before_is_refused_by_it():
    def spent(_: bytes) -> None:
        raise ProtocolError("this bundle was used before", code="bundle-reused")

    one = trio()
    hospital = ChainHospital(dataclasses.replace(one.terms, spend=spent), lambda size: b"r" * size)
    bundle = one.deck.handle(HOSPITAL, hospital.begin(), 0.0)
    party = PartySession(HOSPITAL, lambda _: one.model, spent, 60)
    for session, message in ((hospital, bundle), (party, sample(Open))):
        with pytest.raises(ProtocolError) as caught:
            session.handle(message)
        assert caught.value.code == "bundle-reused"
        assert session.state is State.ABORTED


PEERS = {"hospital": HOSPITAL, "party": PARTY, "stranger": b"x" * 32}


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("peer", PEERS)
def test_the_dealer_answers_deal_to_hospitals_and_fetch_to_parties_alone(peer, kind):
    one = trio()
    bundle = one.deck.handle(HOSPITAL, sample(Deal), 0.0).bundle
    message = sample(kind, bundle)
    if (peer, kind) == ("hospital", Deal):
        assert isinstance(one.deck.handle(PEERS[peer], message, 0.0), Bundle)
    elif (peer, kind) == ("party", Fetch):
        assert isinstance(one.deck.handle(PEERS[peer], message, 0.0), Half)
    else:
        with pytest.raises(ProtocolError) as caught:
            one.deck.handle(PEERS[peer], message, 0.0)
        assert caught.value.code == "out-of-order"


def test_a_half_is_handed_out_once():
    one = trio()
    bundle = one.deck.handle(HOSPITAL, sample(Deal), 0.0).bundle
    one.deck.handle(PARTY, sample(Fetch, bundle), 0.0)
    assert len(one.deck) == 0
    with pytest.raises(ProtocolError) as caught:
        one.deck.handle(PARTY, sample(Fetch, bundle), 0.0)
    assert caught.value.code == "unknown-bundle"


@pytest.mark.parametrize("wrong", [{"model": b"z" * 32}, {"hospital": b"z" * 32}, {"program": b"z" * 32}])
def test_a_half_asked_for_in_another_context_is_burned(wrong):
    one = trio()
    bundle = one.deck.handle(HOSPITAL, sample(Deal), 0.0).bundle
    with pytest.raises(ProtocolError) as caught:
        one.deck.handle(PARTY, dataclasses.replace(sample(Fetch, bundle), **wrong), 0.0)
    assert caught.value.code == "wrong-bundle"
    with pytest.raises(ProtocolError):
        one.deck.handle(PARTY, sample(Fetch, bundle), 0.0)


def test_the_dealer_forgets_a_bundle_after_its_time():
    one = trio()
    bundle = one.deck.handle(HOSPITAL, sample(Deal), 0.0).bundle
    one.deck.forget(59.9)
    assert len(one.deck) == 1
    with pytest.raises(ProtocolError) as caught:
        one.deck.handle(PARTY, sample(Fetch, bundle), 60.0)
    assert caught.value.code == "unknown-bundle"
    assert len(one.deck) == 0


def test_the_dealer_keeps_no_more_bundles_than_it_was_told():
    one = trio()
    for _ in range(64):
        one.deck.handle(HOSPITAL, sample(Deal), 0.0)
    with pytest.raises(Unavailable) as caught:
        one.deck.handle(HOSPITAL, sample(Deal), 0.0)
    assert caught.value.code == "dealer-full"


@pytest.mark.parametrize("text", [b"", b"{}", b"null", b"\xff", trio().plan.encoded + b" "])
def test_the_dealer_refuses_a_program_that_is_not_in_canonical_form(text):
    with pytest.raises(ProtocolError) as caught:
        trio().deck.handle(HOSPITAL, dataclasses.replace(sample(Deal), program=text), 0.0)
    assert caught.value.code == "malformed-program"


def test_the_dealer_refuses_a_program_that_would_fill_its_memory():
    huge = program(2**20, 2**20, columns=2**20)
    with pytest.raises(ProtocolError):
        trio().deck.handle(HOSPITAL, dataclasses.replace(sample(Deal), program=huge.model_dump_json().encode()), 0.0)


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_message_reads_back_as_it_was_written_and_no_truncation_does(kind):
    frame = sample(kind).encode()
    assert decode(frame) == sample(kind)
    fixed = {Deal: 81, Bundle: 65, Open: 50, Fetch: 113, Half: 49, Ready: 21, Masked: 19, Output: 17, Failure: 2}.get(
        kind, 19
    )
    with pytest.raises(ProtocolError):
        decode(frame[: fixed - 1])
    if len(frame) == fixed:
        with pytest.raises(ProtocolError):
            decode(frame + b"\0")


@pytest.mark.parametrize(("kind", "field"), [(Ready, "deltas"), (Half, "corrections"), (Material, "values")])
def test_a_vector_is_read_where_it_arrived_and_begins_at_whole_words(kind, field):
    written = sample(kind).encode()
    frame = room(kind.KIND, len(written))
    frame[:] = written
    read = np.frombuffer(getattr(decode(frame), field), np.uint8)
    assert np.shares_memory(read, np.frombuffer(frame, np.uint8))
    assert read.ctypes.data % 16 == 0
    assert not read.flags.writeable


@pytest.mark.parametrize("frame", [b"", b"\0", b"\x0f", b"\xff" * 40])
def test_a_frame_of_no_known_kind_is_refused(frame):
    with pytest.raises(ProtocolError):
        decode(frame)


@pytest.mark.parametrize(("reaction", "code"), [(0, b"x"), (9, b"x"), (1, b""), (1, b"Bad code"), (1, b"a" * 49)])
def test_a_malformed_failure_is_a_protocol_error_and_its_text_is_not_repeated(reaction, code):
    error = Failure(reaction, code).error("party 1")
    assert isinstance(error, ProtocolError)
    assert error.code == "malformed-message"


@pytest.mark.parametrize("error", [ProtocolError("a", code="b"), Unavailable("a", code="b")])
def test_a_failure_arrives_as_the_same_class_and_code(error: VeilRayError):
    found = Failure.of(error).error("party 1")
    assert (type(found), found.code) == (type(error), "b")


def test_two_first_sessions_at_once_may_both_ask_for_the_blinded_weights():
    one = trio()
    hospitals = [ChainHospital(one.terms, lambda size, n=n: bytes([n]) * size) for n in range(2)]
    openings = [each.handle(one.deck.handle(HOSPITAL, each.begin(), 0.0)) for each in hospitals]
    assert [opening.wants_delta for opening in openings] == [1, 1]
    for each, opening in zip(hospitals, openings, strict=True):
        party = PartySession(HOSPITAL, lambda _: one.model, lambda _: None, 60)
        each.handle(party.handle(one.deck.handle(PARTY, party.handle(opening), 0.0)))
        one.ask(COLUMNS, (each, party))
        assert each.state is State.DONE
