"""What the dealer makes fits: products are products, a truncation is exact, and each half alone says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.core.errors import ProtocolError
from secure_infer.crypten_engine.tuples import OFFSET, RING, Request, corrections, half, requests_of, truncated
from secure_infer.protocol.layers import weigh
from secure_infer.protocol.prg import tuple_masks
from tests.secure_infer.small_network import every_kind

HOSPITAL, PARTY = tuple_masks(b"h" * 32), tuple_masks(b"p" * 32)
REQUESTS = requests_of(every_kind())


def halves(request: Request) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return half(request, HOSPITAL, None), half(request, PARTY, RING.to_bytes(corrections(request, HOSPITAL, PARTY)))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: f"{one.number}-{one.kind}")
def test_the_two_halves_fit(request_):
    ours, theirs = halves(request_)
    if request_.kind == "bit":
        bit = ours[0] ^ theirs[0]
        assert set(np.unique(bit)) <= {0, 1}
        np.testing.assert_array_equal(ours[1] + theirs[1], bit)
    elif request_.kind == "and":
        a, b, c = (mine ^ other for mine, other in zip(ours, theirs, strict=True))
        np.testing.assert_array_equal(c, a & b)
    elif request_.kind == "truncation":
        mask, shifted, highest = (mine + other for mine, other in zip(ours, theirs, strict=True))
        np.testing.assert_array_equal(shifted, mask >> np.uint64(request_.shift))
        np.testing.assert_array_equal(highest, (mask >> np.uint64(63)) << np.uint64(64 - request_.shift))
    else:
        a, b, c = (mine + other for mine, other in zip(ours, theirs, strict=True))
        product = {
            "mul": lambda: a * b,
            "matmul": lambda: a @ b,
            "conv2d": lambda: weigh(request_.layer, a[0], b)[None],
        }
        np.testing.assert_array_equal(c, product[request_.kind]())


def test_no_mask_is_drawn_twice():
    drawn = [words for request in REQUESTS for words in half(request, HOSPITAL, None) if words.max() > 1]
    firsts = [int(words.reshape(-1)[0]) for words in drawn]
    assert len(set(firsts)) == len(firsts)


def test_corrections_of_the_wrong_size_are_refused():
    request = REQUESTS[0]
    with pytest.raises(ProtocolError):
        half(request, PARTY, bytes(request.corrections - 8))


@given(st.integers(-(2**62), 2**62 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 61))
def test_a_truncation_is_exact_to_one_unit_in_the_last_place(value, share, mask, shift):
    words = lambda number: np.array([number % 2**64], np.uint64)  # noqa: E731
    ours = [words(share), words(3 * share), words(5 * share)]
    whole = [words(mask), words(mask >> shift), words((mask >> 63) << (64 - shift))]
    theirs = [all_of - mine for all_of, mine in zip(whole, ours, strict=True)]
    opened = words(value + mask + OFFSET)
    found = truncated(opened, ours, shift, first=True) + truncated(opened, theirs, shift, first=False)
    assert int(found.view(np.int64)[0]) - (value >> shift) in (0, 1)
