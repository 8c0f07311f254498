"""The dealer hands each half to its owner, once, and forgets it in time."""

from __future__ import annotations

import dataclasses

import pytest

from dicom_node.core.errors import ProtocolError, Unavailable
from secure_infer.program import DenseLayer, FlattenLayer
from secure_infer.protocol.messages import KINDS, Bundle, Deal, Fetch, Half, Message
from tests.secure_infer.protocol.test_messages import SAMPLES
from tests.secure_infer.small_dealer import SEALING_KEY
from tests.secure_infer.small_model import head, weights_of
from tests.secure_infer.small_network import HOSPITAL, MODEL, PARTY, Trio

MADE = head(3, 2)
PEERS = {"hospital": HOSPITAL, "party": PARTY, "stranger": b"x" * 32}


def trio() -> Trio:
    return Trio(MADE, weights_of(MADE))


DEAL = Deal(MODEL, PARTY, SEALING_KEY.public_key().public_bytes_raw(), trio().plan.encoded)


def sample(kind: type[Message], bundle: bytes) -> Message:
    if kind is Deal:
        return DEAL
    return Fetch(bundle, MODEL, trio().plan.digest, HOSPITAL) if kind is Fetch else SAMPLES[kind]


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("peer", PEERS)
def test_the_dealer_answers_deal_to_hospitals_and_fetch_to_parties_alone(peer, kind):
    one = trio()
    bundle = one.deck.handle(HOSPITAL, DEAL, 0.0).bundle
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
    bundle = one.deck.handle(HOSPITAL, DEAL, 0.0).bundle
    one.deck.handle(PARTY, sample(Fetch, bundle), 0.0)
    assert len(one.deck) == 0
    with pytest.raises(ProtocolError) as caught:
        one.deck.handle(PARTY, sample(Fetch, bundle), 0.0)
    assert caught.value.code == "unknown-bundle"


@pytest.mark.parametrize("wrong", [{"model": b"z" * 32}, {"hospital": b"z" * 32}, {"program": b"z" * 32}])
def test_a_half_asked_for_in_another_context_is_burned(wrong):
    one = trio()
    bundle = one.deck.handle(HOSPITAL, DEAL, 0.0).bundle
    with pytest.raises(ProtocolError) as caught:
        one.deck.handle(PARTY, dataclasses.replace(sample(Fetch, bundle), **wrong), 0.0)
    assert caught.value.code == "wrong-bundle"
    with pytest.raises(ProtocolError):
        one.deck.handle(PARTY, sample(Fetch, bundle), 0.0)


def test_the_dealer_forgets_a_bundle_after_its_time():
    one = trio()
    bundle = one.deck.handle(HOSPITAL, DEAL, 0.0).bundle
    one.deck.forget(59.9)
    assert len(one.deck) == 1
    with pytest.raises(ProtocolError) as caught:
        one.deck.handle(PARTY, sample(Fetch, bundle), 60.0)
    assert caught.value.code == "unknown-bundle"
    assert len(one.deck) == 0


def test_the_dealer_keeps_no_more_bundles_than_it_was_told():
    one = trio()
    for _ in range(64):
        one.deck.handle(HOSPITAL, DEAL, 0.0)
    with pytest.raises(Unavailable) as caught:
        one.deck.handle(HOSPITAL, DEAL, 0.0)
    assert caught.value.code == "dealer-full"


@pytest.mark.parametrize("text", [b"", b"{}", b"null", b"\xff", DEAL.program + b" "])
def test_the_dealer_refuses_a_program_that_is_not_in_canonical_form(text):
    with pytest.raises(ProtocolError) as caught:
        trio().deck.handle(HOSPITAL, dataclasses.replace(DEAL, program=text), 0.0)
    assert caught.value.code == "malformed-program"


def test_the_dealer_refuses_a_program_that_would_fill_its_memory():
    flat = FlattenLayer(name="flat", source="input")
    dense = DenseLayer(name="head", source="flat", out_features=2**20)
    for huge in (
        head(2**20, 2**20, side=2**10),
        head(2**20, 3, side=1).model_copy(update={"layers": (flat, dense)}),
        head(1, 1, side=2**15),
    ):
        with pytest.raises(ProtocolError) as caught:
            trio().deck.handle(HOSPITAL, dataclasses.replace(DEAL, program=huge.model_dump_json().encode()), 0.0)
        assert caught.value.code == "malformed-program"
