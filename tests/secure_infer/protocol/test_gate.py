"""The gate over the whole range of its ring: right, or one unit in the last place too large, nothing else."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError
from secure_infer.protocol import kernels
from secure_infer.protocol.gate import Gate
from secure_infer.protocol.messages import Label
from secure_infer.protocol.prg import Prg
from secure_infer.protocol.ring import Ring

BOTH = [(64, 26), (64, 27), (64, 30), (32, 1), (32, 10), (32, 12), (32, 16), (32, 29)]


def evaluate(gate: Gate, values: np.ndarray, keys: tuple[bytes, bytes, bytes]) -> np.ndarray:
    """Run dealer and both parties on signed values; the opened results."""
    bundle, party, private = map(Prg, keys)
    ring = gate.ring
    covered = values.astype(f"u{ring.width}") + gate.cover(1, bundle, (gate.size,))
    opened = covered + party.words(Label.PARTY_GATE_MASK, 1, (gate.size,), ring)
    tables = [gate.view(gate.tables(1, bundle)), gate.view(gate.deal(1, bundle, party, private))]
    bits, highest = zip(*(gate.compare(opened, one) for one in tables), strict=True)
    joined = bits[0] ^ bits[1]
    signs = [gate.sign(opened, tables[i], joined, highest[i], i) for i in (0, 1)]
    shares = [gate.select(opened, tables[i], signs[0] ^ signs[1], i) for i in (0, 1)]
    return (shares[0] + shares[1]).view(f"i{ring.width}").astype(np.int64)


def errors(values: np.ndarray, found: np.ndarray, shift: int) -> set[int]:
    return set((found - (np.maximum(values, 0) >> shift)).tolist())


def spread(bits: int, shift: int, count: int, seed: int) -> np.ndarray:
    """Values of every magnitude, the ends of the range and the neighbourhoods of powers of two."""
    generator = np.random.default_rng(seed)
    limit = 1 << (bits - 2)
    powers = np.array([sign * (1 << k) + off for k in range(bits - 2) for sign in (1, -1) for off in (-1, 0, 1)])
    magnitudes = generator.integers(-limit, limit, count) >> generator.integers(0, bits - 2, count)
    found = np.concatenate([generator.integers(-limit, limit, count), magnitudes, powers, [-limit, 0]])
    return np.clip(found, -limit, limit - (1 << shift) - 1)


@pytest.mark.parametrize(("bits", "shift"), BOTH)
def test_over_the_full_range_the_error_is_0_or_1(bits, shift):
    values = spread(bits, shift, 150_000, seed=bits + shift)
    gate = Gate(Ring(bits), shift, len(values))
    found = evaluate(gate, values, (os.urandom(16), os.urandom(16), os.urandom(16)))
    assert errors(values, found, shift) == {0, 1}
    assert (found[values < 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(BOTH), st.data(), st.binary(min_size=48, max_size=48))
def test_any_value_under_any_masks_is_right_or_one_too_large(kind, data, key):
    bits, shift = kind
    limit = 1 << (bits - 2)
    values = np.array(
        data.draw(st.lists(st.integers(-limit, limit - (1 << shift) - 1), min_size=1, max_size=9)), np.int64
    )
    found = evaluate(Gate(Ring(bits), shift, len(values)), values, (key[:16], key[16:32], key[32:]))
    assert errors(values, found, shift) <= {0, 1}


def test_a_table_without_its_last_product_is_seen(monkeypatch):
    whole = kernels.selections(6)
    broken = (whole[0] & ~(np.uint64(1) << np.uint64(61)), whole[1])
    monkeypatch.setattr("secure_infer.protocol.gate._tables", lambda digits: broken)
    values = spread(64, 26, 20_000, seed=1) >> 30
    found = evaluate(Gate(Ring(64), 26, len(values)), values, (b"1" * 16, b"2" * 16, b"3" * 16))
    assert not errors(values, found, 26) <= {0, 1}


@pytest.mark.parametrize(("bits", "shift"), [(64, 25), (64, 12), (64, 31), (32, 0), (32, 30)])
def test_a_shift_for_which_the_tables_do_not_suffice_is_refused(bits, shift):
    with pytest.raises(ConfigError) as caught:
        Gate(Ring(bits), shift, 1)
    assert caught.value.code == "gate-shift"
