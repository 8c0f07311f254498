"""One content has one encoding, and nothing that was cut, padded, reordered or altered is read."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ProtocolError
from fl_agent.secagg.frames import ENVELOPE, frame, open_frame
from fl_agent.secagg.messages import (
    KINDS,
    Abort,
    AdvertiseKeys,
    CiphertextList,
    ConsistencyCheck,
    KeyEntry,
    KeyList,
    MaskedInput,
    Message,
    RoundHeader,
    SealedEntry,
    ShareEntry,
    ShareKeys,
    SignatureEntry,
    SignatureList,
    SurvivorList,
    Unmasking,
    UserEntry,
)
from tests.fl_agent.secagg.consortium import raw

IDENTITY = Ed25519PrivateKey.generate()
ROUND = b"r" * 32


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def lists(entry: type, *fields: st.SearchStrategy) -> st.SearchStrategy[tuple]:
    users = st.lists(st.integers(1, 65535), unique=True, max_size=5).map(sorted)
    return users.flatmap(lambda all_of: st.tuples(*(st.builds(entry, st.just(user), *fields) for user in all_of)))


SEALED = lists(SealedEntry, exactly(12), exactly(86))
MESSAGES: dict[type[Message], st.SearchStrategy] = {
    RoundHeader: st.builds(RoundHeader, st.binary(max_size=300)),
    AdvertiseKeys: st.builds(AdvertiseKeys, exactly(32), exactly(32), exactly(64)),
    KeyList: st.builds(KeyList, lists(KeyEntry, exactly(32), exactly(32), exactly(64))),
    ShareKeys: st.builds(ShareKeys, exactly(32), SEALED),
    CiphertextList: st.builds(CiphertextList, SEALED),
    MaskedInput: st.builds(MaskedInput, st.binary(max_size=300)),
    SurvivorList: st.builds(SurvivorList, lists(UserEntry)),
    ConsistencyCheck: st.builds(ConsistencyCheck, exactly(64)),
    SignatureList: st.builds(SignatureList, lists(SignatureEntry, exactly(64))),
    Unmasking: st.builds(Unmasking, lists(ShareEntry, st.integers(0, 255), exactly(33))),
    Abort: st.just(Abort()),
}
ANY = st.one_of(list(MESSAGES.values()))


def test_every_kind_is_generated_here() -> None:
    assert set(MESSAGES) == set(KINDS.values())


@given(ANY, st.integers(0, 65535))
def test_what_is_written_is_read(message: Message, sender: int) -> None:
    written = frame(message, sender, ROUND, IDENTITY)
    read = open_frame(written)
    read.verify(raw(IDENTITY))
    assert (read.message(), read.sender, read.round_id) == (message, sender, ROUND)
    assert frame(read.message(), sender, ROUND, IDENTITY) == written


@settings(max_examples=200)
@given(ANY, st.data())
def test_a_frame_that_was_altered_cut_or_padded_is_refused(message: Message, data: st.DataObject) -> None:
    written = bytearray(frame(message, 1, ROUND, IDENTITY))
    place = data.draw(st.integers(0, len(written) - 1))
    change = data.draw(st.sampled_from(["alter", "cut", "pad", "drop"]))
    if change == "alter":
        written[place] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del written[place:]
    elif change == "pad":
        written.insert(place, data.draw(st.integers(0, 255)))
    else:
        del written[place]
    with pytest.raises(ProtocolError) as raised:
        read = open_frame(written)
        read.verify(raw(IDENTITY))
    assert raised.value.code in {"malformed", "bad-signature"}


@given(ANY, st.binary(max_size=400))
def test_a_body_is_read_in_its_one_spelling_or_not_at_all(message: Message, noise: bytes) -> None:
    for body in (noise, message.encode() + noise[:3], noise[:3] + message.encode()):
        read = None
        with suppress(ProtocolError):
            read = type(message).decode(memoryview(body))
        assert read is None or read.encode() == body


def test_a_list_out_of_order_or_with_one_user_twice_is_malformed() -> None:
    for users in ((2, 1), (1, 1), (0, 1)):
        body = SurvivorList(tuple(map(UserEntry, users))).encode()
        with pytest.raises(ProtocolError, match="ascending"):
            SurvivorList.decode(memoryview(body))


def test_a_field_of_the_wrong_length_is_never_padded_or_cut() -> None:
    for field in ("c_pk", "s_pk", "signature"):
        for size in (31, 33, 63, 65):
            good = AdvertiseKeys(bytes(32), bytes(32), bytes(64))
            with pytest.raises(ValueError, match="wrong length"):
                dataclasses.replace(good, **{field: b"x" * size}).encode()


def test_a_body_longer_than_any_is_refused_by_its_stated_length() -> None:
    head = ENVELOPE.pack(1, Abort.KIND, 1, ROUND, 1 << 31)
    with pytest.raises(ProtocolError, match="length"):
        open_frame(head + bytes(64))


def test_a_frame_is_bound_to_its_kind_sender_and_round() -> None:
    written = frame(ConsistencyCheck(bytes(64)), 1, ROUND, IDENTITY)
    for place in range(ENVELOPE.size - 4):
        altered = bytearray(written)
        altered[place] ^= 1
        with pytest.raises(ProtocolError):
            open_frame(altered).verify(raw(IDENTITY))
