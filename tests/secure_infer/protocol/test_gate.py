"""Gates over the whole range of their ring: right, or one unit in the last place too large, nothing else."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError
from secure_infer.program import ReluLayer
from secure_infer.protocol import kernels
from secure_infer.protocol.gate import ReluGate, TruncationGate, gate_of
from secure_infer.protocol.messages import Label
from secure_infer.protocol.packing import pack, unpack
from secure_infer.protocol.prg import Prg
from secure_infer.protocol.ring import Ring

#: Bits of the ring, bits that the gate opens, shift.
RELU = [
    *((64, 64, shift) for shift in (26, 27, 30)),
    *((32, 32, shift) for shift in (1, 10, 12, 16, 29)),
    *((64, 52, 26), (64, 58, 26), (64, 34, 26), (64, 33, 30), (64, 41, 12), (64, 13, 1), (32, 24, 10), (32, 30, 16)),
]
TRUNCATION = [(64, 1), (64, 26), (64, 32), (64, 33), (64, 61), (32, 1), (32, 10), (32, 29)]
Keys = tuple[bytes, bytes, bytes]


def opened_by_party_1(gate: ReluGate | TruncationGate, values: np.ndarray, keys: list[Prg]) -> np.ndarray:
    covered = values.astype(f"u{gate.ring.width}") + gate.cover(1, keys[0], (gate.size,))
    opened = covered + keys[1].words(Label.PARTY_GATE_MASK, 1, (gate.size,), gate.ring)
    return gate.reduced(opened) if isinstance(gate, ReluGate) else opened


def signed(words: np.ndarray) -> np.ndarray:
    return words.view(f"i{words.itemsize}").astype(np.int64)


def relu(gate: ReluGate, values: np.ndarray, keys: Keys) -> np.ndarray:
    """Run dealer and both parties on signed values, party 0 without the bits it never sees; the opened results."""
    streams = [Prg(key) for key in keys]
    opened = [np.empty(0), opened_by_party_1(gate, values, streams)]
    opened[0] = opened[1] >> opened[1].dtype.type(gate.low) << opened[1].dtype.type(gate.low)
    tables = [gate.view(gate.tables(1, streams[0])), gate.view(gate.deal(1, *streams))]
    bits, highest = zip(*(gate.compare(opened[i], tables[i]) for i in (0, 1)), strict=True)
    joined = bits[0] ^ bits[1]
    assert not (joined >> gate.joined_bits).any()
    signs = [gate.sign(opened[i], tables[i], joined, highest[i], i) for i in (0, 1)]
    outcomes = [gate.outcomes(opened[i], tables[i], i) for i in (0, 1)]
    shares = [gate.choose(outcomes[i], tables[i], signs[0] ^ signs[1], i) for i in (0, 1)]
    return signed(shares[0] + shares[1])


def truncation(gate: TruncationGate, values: np.ndarray, keys: Keys) -> np.ndarray:
    """The same for the gate without a comparison; party 0's share is the mask r."""
    streams = [Prg(key) for key in keys]
    tops, share = gate.truncate(opened_by_party_1(gate, values, streams), gate.deal(1, *streams))
    answer = gate.answer(tops, gate.tables(1, streams[0]))
    word = share.dtype.type
    answer = unpack(pack(answer, gate.shift), gate.size, gate.shift, share.dtype.str)
    theirs = streams[0].words(Label.INPUT_MASK, 1, (gate.size,), gate.ring)
    return signed(share + (answer << word(gate.ring.bits - gate.shift)) + theirs)


def carries(gate: ReluGate | TruncationGate, keys: Keys) -> np.ndarray:
    """What the masks add to the bits that are dropped."""
    ours, theirs = (
        Prg(key).words(label, 1, (gate.size,), gate.ring)
        for key, label in zip(keys, (Label.GATE_MASK, Label.PARTY_GATE_MASK), strict=False)
    )
    return ((ours + theirs) & ours.dtype.type((1 << gate.shift) - 1)).astype(np.int64)


def spread(bits: int, shift: int, count: int, seed: int, around: int = 0) -> np.ndarray:
    """Values of every magnitude, the ends of the range and the neighbourhoods of powers of two, also around a value."""
    generator = np.random.default_rng(seed)
    limit = 1 << (bits - 2)
    powers = np.array([sign * (1 << k) + off for k in range(bits - 2) for sign in (1, -1) for off in (-1, 0, 1)])
    magnitudes = generator.integers(-limit, limit, count) >> generator.integers(0, bits - 2, count)
    found = np.concatenate([generator.integers(-limit, limit, count), magnitudes, powers, [-limit, 0]])
    found = np.concatenate([found, found // 2 + around]) if around else found
    return np.clip(found, -limit + around, limit - (1 << shift) - 1)


def fresh() -> Keys:
    return os.urandom(16), os.urandom(16), os.urandom(16)


@pytest.mark.parametrize(("ring", "bits", "shift"), RELU)
def test_over_the_full_range_the_error_of_relu_is_0_or_1(ring, bits, shift):
    values = spread(bits, shift, 200_000, seed=bits + shift)
    found = relu(ReluGate(Ring(ring), shift, len(values), needed=bits), values, fresh())
    assert set((found - (np.maximum(values, 0) >> shift)).tolist()) == {0, 1}
    assert (found[values < 0] == 0).all()


@pytest.mark.parametrize(("ring", "bits", "shift"), RELU)
def test_over_the_full_range_the_error_below_a_ceiling_is_0_or_1_and_0_above_it(ring, bits, shift):
    ceiling = max(1, 3 << (bits - shift) // 2 >> 2)
    top = ceiling << shift
    values = spread(bits, shift, 100_000, seed=bits + shift, around=top)
    found = relu(ReluGate(Ring(ring), shift, len(values), ceiling, bits), values, fresh())
    wrong = found - (np.clip(values, 0, top) >> shift)
    assert set(wrong.tolist()) == {0, 1}
    assert (found[values < 0] == 0).all()
    assert (found[values >= top] == ceiling).all()
    assert found.max() == ceiling


@pytest.mark.parametrize(("bits", "shift"), TRUNCATION)
def test_over_the_full_range_the_error_of_truncation_is_0_or_1(bits, shift):
    values = spread(bits, 0, 200_000, seed=bits + shift)
    found = truncation(TruncationGate(Ring(bits), shift, len(values)), values, fresh())
    assert set((found - (values >> shift)).tolist()) == {0, 1}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(RELU), st.data(), st.binary(min_size=48, max_size=48), st.booleans())
def test_any_value_under_any_masks_is_rounded_as_the_masks_alone_say(kind, data, key, bounded):
    ring, bits, shift = kind
    limit = 1 << (bits - 2)
    most = (limit >> shift) - 1
    ceiling = data.draw(st.integers(1, min(most, 1 << 30))) if bounded and most > 1 else 0
    lowest = -limit + (ceiling << shift)
    whole = st.integers(lowest, limit - (1 << shift) - 1)
    near = st.integers(-3, 3).map(lambda off: max(lowest, (ceiling << shift) + off))
    values = np.array(data.draw(st.lists(whole | near, min_size=1, max_size=9)), np.int64)
    keys = key[:16], key[16:32], key[32:]
    gate = ReluGate(Ring(ring), shift, len(values), ceiling, bits)
    expected = np.clip((values + carries(gate, keys)) >> shift, 0, ceiling or None)
    assert relu(gate, values, keys).tolist() == expected.tolist()
    gate = TruncationGate(Ring(ring), shift, len(values))
    assert truncation(gate, values, keys).tolist() == ((values + carries(gate, keys)) >> shift).tolist()


def test_a_table_without_its_last_product_is_seen(monkeypatch):
    whole = kernels.selections(6)
    broken = (whole[0] & ~(np.uint64(1) << np.uint64(61)), *whole[1:])
    monkeypatch.setattr("secure_infer.protocol.gate._tables", lambda digits: broken)
    values = spread(64, 26, 20_000, seed=1) >> 30
    found = relu(ReluGate(Ring(64), 26, len(values)), values, (b"1" * 16, b"2" * 16, b"3" * 16))
    assert not set((found - (np.maximum(values, 0) >> 26)).tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("ring", "bits", "shift"),
    [
        (64, 0, 25),
        (64, 0, 12),
        (64, 0, 31),
        (32, 0, 0),
        (32, 0, 30),
        (64, 28, 26),
        (64, 51, 12),
        (32, 33, 10),
        (64, 14, 1),
    ],
)
def test_a_shift_for_which_the_tables_do_not_suffice_is_refused(ring, bits, shift):
    with pytest.raises(ConfigError) as caught:
        ReluGate(Ring(ring), shift, 1, needed=bits)
    assert caught.value.code == "gate-shift"


@pytest.mark.parametrize(("bits", "shift"), [(64, 0), (64, 62), (32, 30)])
def test_a_truncation_that_leaves_the_ring_is_refused(bits, shift):
    with pytest.raises(ConfigError) as caught:
        TruncationGate(Ring(bits), shift, 1)
    assert caught.value.code == "gate-shift"


@pytest.mark.parametrize("ceiling", [2.0**-17, 2.0**20])
def test_a_ceiling_that_the_scale_cannot_hold_is_refused(ceiling):
    with pytest.raises(ConfigError) as caught:
        gate_of(ReluLayer(name="a", source="b", shift=26, ceiling=ceiling), Ring(64), 1, 16)
    assert caught.value.code == "gate-shift"
