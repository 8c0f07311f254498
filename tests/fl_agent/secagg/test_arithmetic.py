"""Masks cancel, encodings are exact and packing loses nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.core.errors import ProtocolError, Refused
from fl_agent.secagg import masks
from fl_agent.secagg.encode import add_packed, decode, encode, finest_step, pack_words, packed_size
from fl_agent.secagg.header import BITS, Block, Header
from tests.fl_agent.secagg.consortium import SITE

ROUND = b"r" * 32


def make_header() -> Header:
    cohort = tuple(bytes([place]) * 32 for place in range(1, 6))
    return Header(b"r" * 16, 1, b"m" * 32, cohort, 4, 32, (Block(7, 1.0, finest_step(5, 32, 1.0)),), SITE)


HEADER = make_header()


@pytest.fixture
def header() -> Header:
    return HEADER


def with_blocks(header: Header, bits: int, *lengths: int, clip: float = 1.0) -> Header:
    step = finest_step(header.size, bits, clip)
    return dataclasses.replace(header, bits=bits, blocks=tuple(Block(length, clip, step) for length in lengths))


def test_a_mask_is_the_key_stream_of_aes_256_in_counter_mode() -> None:
    words = np.zeros(masks.CHUNK + 3, dtype=np.uint32)
    masks.add_masks(words, [b"k" * 32], [])
    stream = Cipher(algorithms.AES256(b"k" * 32), modes.CTR(bytes(16))).encryptor()
    assert words.astype("<u4").tobytes() == stream.update(bytes(4 * len(words)))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=4, unique=True), st.integers(0, 50))
def test_masks_added_and_subtracted_leave_nothing(keys: list[bytes], size: int) -> None:
    words = np.arange(size, dtype=np.uint32)
    masks.add_masks(words, keys, [])
    masks.add_masks(words, [], keys)
    np.testing.assert_array_equal(words, np.arange(size))


def test_both_ends_derive_one_key_for_each_pair_and_another_for_each_purpose() -> None:
    mine, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    ends = {1: mine.public_key().public_bytes_raw(), 2: other.public_key().public_bytes_raw()}
    shared = masks.agree(mine, ends[2])
    assert shared == masks.agree(other, ends[1])
    swapped = {1: ends[2], 2: ends[1]}
    keys = [
        masks.pairwise_key(shared, ROUND, ends),
        masks.pairwise_key(shared, ROUND, swapped),
        masks.pairwise_key(shared, b"s" * 32, ends),
        masks.self_mask_key(shared, ROUND, 1),
        masks.self_mask_key(shared, ROUND, 2),
        masks.channel_key(shared, ROUND, 1, 2),
        masks.channel_key(shared, ROUND, 2, 1),
        masks.commitment(shared, ROUND, 1),
    ]
    assert len(set(keys)) == len(keys)
    assert masks.pairwise_key(shared, ROUND, dict(reversed(ends.items()))) == keys[0]


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 19).to_bytes(32, "little")])
def test_a_public_key_of_small_order_is_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        masks.agree(X25519PrivateKey.generate(), point)
    assert raised.value.code == "weak-key"


@given(st.sampled_from(BITS), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=17))
def test_packing_keeps_the_low_bits(bits: int, numbers: list[int]) -> None:
    header = with_blocks(HEADER, bits, len(numbers))
    words = np.array(numbers, dtype=np.uint32)
    room = bytearray(packed_size(header))
    pack_words(header, words, memoryview(room))
    total = np.ones(len(numbers), dtype=np.uint32)
    add_packed(header, memoryview(room), total)
    np.testing.assert_array_equal((total - 1) & ((1 << bits) - 1), words & np.uint32((1 << bits) - 1))
    # Little-endian: the bytes are the numbers' bits in a row.
    joined = sum((number % (1 << bits)) << (bits * place) for place, number in enumerate(numbers))
    assert room == joined.to_bytes(len(room), "little")
    assert len(room) * 8 - bits * len(numbers) in (0, bits)


@given(st.sampled_from(BITS), st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=9))
def test_a_lone_vector_comes_back_clipped_and_within_half_a_step(bits: int, numbers: list[float]) -> None:
    header = with_blocks(HEADER, bits, len(numbers))
    words = np.empty(len(numbers), dtype=np.uint32)
    encode(header, [np.array(numbers, dtype=np.float32)], words)
    step = header.blocks[0].step
    (found,) = decode(header, words)
    assert np.abs(found - np.clip(numbers, -1, 1)).max() <= step / 2 * (1 + 1e-9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_cohort_at_the_clip_does_not_wrap(header: Header, bits: int, sign: int) -> None:
    narrow = with_blocks(header, bits, 3)
    words = np.empty(3, dtype=np.uint32)
    encode(narrow, [np.full(3, sign * 1e30, dtype=np.float32)], words)
    total = np.zeros(3, dtype=np.uint32)
    for _ in range(header.size):
        total += words
    (found,) = decode(narrow, total)
    assert found == pytest.approx(sign * header.size, rel=1e-9)


def test_integers_are_steps_already(header: Header) -> None:
    one = with_blocks(header, 20, 4)
    limit = one.blocks[0].limit
    words = np.empty(4, dtype=np.uint32)
    encode(one, [np.array([0, -1, limit + 5, -limit - 5])], words)
    np.testing.assert_array_equal(words.view(np.int32), [0, -1, limit, -limit])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, 131_071])
def test_one_number_that_is_not_finite_refuses_the_update(header: Header, poison: float, place: int) -> None:
    long = with_blocks(header, 32, 131_072)
    values = np.zeros(131_072, dtype=np.float32)
    values[place] = poison
    with pytest.raises(Refused) as raised:
        encode(long, [values], np.empty(131_072, dtype=np.uint32))
    assert raised.value.code == "non-finite-update"


def test_infinities_of_both_signs_do_not_hide_each_other(header: Header) -> None:
    with pytest.raises(Refused):
        encode(with_blocks(header, 32, 2), [np.array([np.inf, -np.inf])], np.empty(2, dtype=np.uint32))


@pytest.mark.parametrize("shapes", [[(7,), (1,)], [(6,)], [(7, 1)], []])
def test_an_update_of_another_shape_is_refused(header: Header, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(Refused) as raised:
        encode(header, [np.zeros(shape) for shape in shapes], np.empty(7, dtype=np.uint32))
    assert raised.value.code == "update-shape"


def test_padding_that_carries_something_is_refused(header: Header) -> None:
    odd = with_blocks(header, 20, 3)
    room = bytearray(packed_size(odd))
    room[-1] = 1
    with pytest.raises(ProtocolError, match="padding"):
        add_packed(odd, memoryview(room), np.zeros(3, dtype=np.uint32))
