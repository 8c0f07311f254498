"""The dealer of tuples answers whom it may, binds a bundle to its two owners, and forgets all at a restart."""

from __future__ import annotations

import dataclasses
import os

import pytest

from dicom_node.core.errors import ProtocolError, Unavailable
from secure_infer.crypten_engine.dealer import TupleDealer
from secure_infer.crypten_engine.tuples import requests_of
from secure_infer.protocol.messages import TupleDeal, TupleFetch, TupleSeed
from secure_infer.protocol.plan import Plan
from tests.secure_infer.small_network import HOSPITAL, MODEL, PARTY, every_kind

PLAN = Plan(every_kind())
OTHER = b"o" * 32
DEAL = TupleDeal(b"s" * 16, MODEL, PARTY, PLAN.encoded)


def dealer() -> TupleDealer:
    made = TupleDealer(os.urandom)
    made.admit(frozenset({HOSPITAL, OTHER}), frozenset({PARTY}))
    return made


def dealt(one: TupleDealer, hospital: bytes = HOSPITAL) -> tuple[TupleSeed, TupleFetch]:
    (seed,) = one.answers(hospital, DEAL)
    return seed, TupleFetch(seed.bundle, MODEL, PLAN.digest, hospital)


def fetched(one: TupleDealer, fetch: TupleFetch) -> list:
    return list(one.answers(PARTY, fetch))


def test_party_1_gets_a_seed_and_one_correction_for_each_tuple():
    one = dealer()
    seed, fetch = dealt(one)
    other, *corrections = fetched(one, fetch)
    assert other.bundle == seed.bundle
    assert other.seed != seed.seed
    assert [(c.layer, len(c.values)) for c in corrections] == [
        (request.number, request.corrections) for request in requests_of(PLAN.program)
    ]


def test_two_bundles_share_no_seed_even_for_one_session():
    one = dealer()
    assert len({part for _ in range(3) for part in (dealt(one)[0].bundle, dealt(one)[0].seed)}) == 6


@pytest.mark.parametrize("change", [{"hospital": OTHER}, {"model": b"x" * 32}, {"bundle": b"y" * 16}])
def test_a_party_that_lies_about_a_bundle_gets_what_fits_no_other_half(change):
    one = dealer()
    _, fetch = dealt(one)
    right, wrong = fetched(one, fetch), fetched(one, dataclasses.replace(fetch, **change))
    assert right[0].seed != wrong[0].seed
    assert bytes(right[1].values) != bytes(wrong[1].values)


@pytest.mark.parametrize(
    ("peer", "asked"),
    [
        (PARTY, DEAL),
        (HOSPITAL, TupleFetch(b"b" * 16, MODEL, PLAN.digest, HOSPITAL)),
        (b"x" * 32, DEAL),
        (HOSPITAL, dataclasses.replace(DEAL, party=HOSPITAL)),
        (HOSPITAL, dataclasses.replace(DEAL, program=b"{}")),
    ],
)
def test_whoever_may_not_ask_is_refused(peer, asked):
    with pytest.raises(ProtocolError):
        list(dealer().answers(peer, asked))


def test_a_restart_burns_what_is_on_its_way():
    _, fetch = dealt(dealer())
    with pytest.raises(Unavailable) as caught:
        fetched(dealer(), fetch)
    assert caught.value.code == "unknown-bundle"
