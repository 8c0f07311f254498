"""Any t shares give the secret, t - 1 fit every secret alike."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ProtocolError
from fl_agent.secagg.shamir import PRIME, combine, element, share, weights

SECRETS = st.binary(min_size=32, max_size=32)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, list[int], list[int]]:
    users = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=12, unique=True))
    threshold = draw(st.integers(1, len(users)))
    chosen = draw(st.permutations(users))[:threshold]
    return draw(SECRETS), threshold, users, chosen


@given(sharings())
def test_any_shares_of_the_threshold_give_the_secret(drawn: tuple[bytes, int, list[int], list[int]]) -> None:
    secret, threshold, users, chosen = drawn
    shares = share(secret, threshold, users)
    assert list(shares) == users
    assert combine({user: shares[user] for user in chosen}, weights(chosen)) == secret


@settings(max_examples=50)
@given(SECRETS, SECRETS, st.integers(2, 8))
def test_one_share_fewer_fits_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    shares = share(secret, threshold, range(1, threshold + 1))
    known = {user: shares[user] for user in range(1, threshold)}
    # The missing share that would make it the other secret exists, so the known ones exclude none.
    coefficients = weights(range(1, threshold + 1))
    partial = sum(
        int.from_bytes(one, "big") * weight for one, weight in zip(known.values(), coefficients, strict=False)
    )
    missing = (int.from_bytes(other, "big") - partial) * pow(coefficients[-1], -1, PRIME) % PRIME
    assert combine({**known, threshold: missing.to_bytes(33, "big")}, coefficients) == other


def test_shares_of_one_secret_differ_every_time() -> None:
    assert len({share(bytes(32), 2, [1, 2])[1] for _ in range(100)}) == 100


def test_the_modulus_is_the_smallest_prime_that_holds_every_secret() -> None:
    def is_prime(number: int) -> bool:  # Miller and Rabin, with fixed bases
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in range(2, 40):
            power = pow(base, odd, number)
            if power in (1, number - 1):
                continue
            if not any(pow(base, odd << one, number) == number - 1 for one in range(1, twos)):
                return False
        return True

    assert [number for number in range(2**256, PRIME + 1) if is_prime(number)] == [PRIME]


def test_what_is_no_element_of_the_field_is_refused() -> None:
    for wrong in (b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33):
        with pytest.raises(ProtocolError) as raised:
            element(wrong)
        assert raised.value.code == "wrong-share"


def test_shares_that_give_no_secret_of_32_bytes_are_refused() -> None:
    with pytest.raises(ProtocolError, match="wrong one"):
        combine({1: (PRIME - 1).to_bytes(33, "big")}, weights([1]))


@pytest.mark.parametrize(
    ("secret", "threshold", "users"),
    [(bytes(31), 1, [1]), (bytes(32), 0, [1]), (bytes(32), 2, [1]), (bytes(32), 1, [0, 1]), (bytes(32), 1, [1, 1])],
)
def test_a_sharing_that_would_be_wrong_is_not_made(secret: bytes, threshold: int, users: list[int]) -> None:
    with pytest.raises(ValueError, match="secret"):
        share(secret, threshold, users)
