"""Packed numbers come back as they were, and anything but exactly their bits is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.core.errors import ProtocolError
from secure_infer.protocol.packing import pack, packed_bytes, unpack


@given(st.integers(1, 64), st.integers(0, 40), st.integers(0, 63), st.integers(0, 2**32))
def test_numbers_of_any_size_come_back(size, count, low, seed):
    low = min(low, 64 - size)
    values = np.random.default_rng(seed).integers(0, 2**64, count, np.uint64, endpoint=False)
    data = pack(values, size, low).tobytes()
    assert len(data) == packed_bytes(count, size)
    expected = [(value >> low) % 2**size for value in values.tolist()]
    assert unpack(data, count, size).tolist() == expected
    assert unpack(data, count, size, low=low).tolist() == [value << low for value in expected]
    assert int.from_bytes(data, "little") == sum(value << (i * size) for i, value in enumerate(expected))


@given(st.integers(0, 40), st.integers(0, 7), st.integers(0, 2**32))
def test_single_bits_of_bytes_are_packed_as_those_of_words(count, low, seed):
    values = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    assert pack(values, 1, low).tobytes() == pack(values.astype(np.uint64), 1, low).tobytes()
    assert unpack(pack(values, 1, low), count, 1, "u1").tolist() == (values >> low & 1).tolist()


@pytest.mark.parametrize("data", [b"", b"12", b"1234", b"12\x10"])
def test_other_bytes_than_those_of_the_numbers_are_refused(data):
    assert unpack(b"12\x0f", 4, 5).tolist()
    with pytest.raises(ProtocolError):
        unpack(data, 4, 5)
