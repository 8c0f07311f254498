"""Impossible terms cannot be written or read; unacceptable ones are refused by the site."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError, ProtocolError, Refused
from fl_agent.secagg.encode import finest_step
from fl_agent.secagg.header import Block, Header, Mode, PrivacyTerms, least_threshold
from fl_agent.secagg.policy import SitePolicy
from tests.fl_agent.secagg.consortium import SITE

COHORT = tuple(bytes([place]) * 32 for place in range(1, 6))
SHARED = PrivacyTerms(Mode.DISTRIBUTED, 3, 1.0, 1.0, 0.1, 10, 2.0, 1e-5)


def block(size: int = 5, bits: int = 32, length: int = 7) -> Block:
    return Block(length, 1.0, finest_step(size, bits, 1.0))


GOOD = Header(b"r" * 16, 1, b"m" * 32, COHORT, 4, 32, (block(), block()), SITE)
POLICY = SitePolicy(b"c" * 32, frozenset(COHORT), frozenset({b"m" * 32}), 3.0)


@given(st.integers(2, 40), st.sampled_from(range(8, 33, 4)), st.integers(1, 2**32 - 1), st.data())
def test_a_header_is_read_as_written(size: int, bits: int, number: int, data: st.DataObject) -> None:
    cohort = tuple(sorted({data.draw(st.binary(min_size=32, max_size=32)) for _ in range(size)}))
    if len(cohort) < 2 or len(cohort) >= 1 << (bits - 2):
        return
    header = Header(
        b"r" * 16, number, b"m" * 32, cohort, least_threshold(len(cohort)), bits, (block(len(cohort), bits),), SITE
    )
    assert Header.decode(header.content) == header


@given(st.integers(0, len(GOOD.content) - 1), st.integers(1, 255))
def test_no_two_headers_share_a_name_and_every_other_spelling_is_refused(place: int, change: int) -> None:
    altered = bytearray(GOOD.content)
    altered[place] ^= change
    try:
        read = Header.decode(bytes(altered))
    except ProtocolError:
        return
    assert read != GOOD
    assert read.round_id != GOOD.round_id
    assert read.content == altered


@pytest.mark.parametrize("content", [b"", GOOD.content[:-1], GOOD.content + b"\0", bytes(1 << 17)])
def test_a_header_that_was_cut_or_padded_is_malformed(content: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        Header.decode(content)
    assert raised.value.code == "malformed"


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": b"short"}, "malformed"),
        ({"round": 0}, "malformed"),
        ({"model": b""}, "malformed"),
        ({"cohort": COHORT[::-1]}, "malformed"),
        ({"cohort": (COHORT[0], *COHORT)}, "malformed"),
        ({"cohort": COHORT[:1], "threshold": 1}, "malformed"),
        ({"cohort": (b"x", *COHORT[1:])}, "malformed"),
        ({"threshold": 3}, "threshold-too-low"),
        ({"threshold": 6}, "threshold-too-low"),
        ({"bits": 31}, "malformed"),
        ({"bits": 36}, "malformed"),
        ({"blocks": ()}, "malformed"),
        ({"blocks": (block(),) * 17}, "malformed"),
        ({"blocks": (Block(0, 1.0, 0.5),)}, "malformed"),
        ({"blocks": (Block(1, NAN, 0.5),)}, "malformed"),
        ({"blocks": (Block(1, 1.0, INF),)}, "malformed"),
        ({"blocks": (Block(1, 1.0, -0.5),)}, "malformed"),
        ({"blocks": (Block(1, 1.0, 0.0),)}, "malformed"),
        ({"blocks": (Block(1, 1.0, 1e-300),)}, "no-headroom"),
        ({"blocks": (Block(1, 1.0, 4.0),)}, "no-headroom"),
        ({"blocks": (block(4),)}, "no-headroom"),
        ({"bits": 28}, "no-headroom"),
        ({"blocks": (block(length=(1 << 28) + 1),)}, "malformed"),
        ({"blocks": (Block(1, 1.0, 0.1, 5),)}, "malformed"),
        ({"privacy": dataclasses.replace(SITE, epsilon=NAN)}, "malformed"),
        ({"privacy": dataclasses.replace(SITE, sampling_rate=1.5)}, "malformed"),
        ({"privacy": dataclasses.replace(SITE, delta=1.0)}, "malformed"),
        ({"privacy": dataclasses.replace(SITE, honest=1)}, "malformed"),
        ({"privacy": SHARED}, "malformed"),
        ({"privacy": SHARED, "blocks": (Block(1, 1.0, 0.1, 0),)}, "malformed"),
        ({"privacy": dataclasses.replace(SHARED, honest=0), "blocks": (Block(1, 1.0, 0.1, 5),)}, "malformed"),
        ({"privacy": dataclasses.replace(SHARED, honest=5), "blocks": (Block(1, 1.0, 0.1, 5),)}, "malformed"),
        ({"privacy": SHARED, "blocks": (Block(1, 1.0, 1.0, 1 << 40),), "bits": 24}, "no-headroom"),
        ({"privacy": SHARED, "blocks": (Block(1, 1.0, 1.0, 1 << 41),)}, "malformed"),
    ],
)
def test_impossible_terms_cannot_be_written(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        dataclasses.replace(GOOD, **changes)
    assert raised.value.code == code


def test_impossible_terms_cannot_be_read_either() -> None:
    place = GOOD.content.index(b"m" * 32) + 32
    low = GOOD.content[:place] + struct.pack(">H", 3) + GOOD.content[place + 2 :]
    with pytest.raises(ProtocolError) as raised:
        Header.decode(low)
    assert raised.value.code == "threshold-too-low"


@pytest.mark.parametrize("size", range(3, 200))
def test_the_least_threshold_survives_a_third_and_is_above_two_thirds(size: int) -> None:
    threshold = least_threshold(size)
    assert threshold == size - (size - 1) // 3
    assert 3 * threshold > 2 * size >= 3 * (threshold - 1)


@pytest.mark.parametrize(
    ("policy", "changes", "code"),
    [
        ({"minimum_cohort": 6}, {}, "cohort-too-small"),
        ({"roster": frozenset(COHORT[:4])}, {}, "unapproved-peer"),
        ({"models": frozenset()}, {}, "unknown-model"),
        ({"maximal_epsilon": 1.9}, {}, "epsilon-too-large"),
        ({"modes": frozenset({Mode.DISTRIBUTED})}, {}, "privacy-mode"),
        ({}, {"privacy": PrivacyTerms(Mode.NONE)}, "privacy-mode"),
        ({}, {"privacy": dataclasses.replace(SITE, epsilon=0.0)}, "epsilon-too-large"),
        ({}, {"cohort": (*COHORT[1:], b"z" * 32)}, "not-a-member"),
    ],
)
def test_a_site_refuses_what_its_policy_forbids(policy: dict[str, Any], changes: dict[str, Any], code: str) -> None:
    POLICY.check(GOOD, COHORT[0])
    with pytest.raises(Refused) as raised:
        dataclasses.replace(POLICY, **policy).check(dataclasses.replace(GOOD, **changes), COHORT[0])
    assert raised.value.code == code


def test_a_minimum_cohort_below_three_cannot_be_set() -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(POLICY, minimum_cohort=2)
    assert dataclasses.replace(POLICY, minimum_cohort=3).minimum_cohort == 3


def test_the_default_minimum_is_five() -> None:
    three = dataclasses.replace(GOOD, cohort=COHORT[:4], threshold=3)
    with pytest.raises(Refused) as raised:
        POLICY.check(three, COHORT[0])
    assert raised.value.code == "cohort-too-small"
