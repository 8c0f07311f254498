"""Shamir's t-of-n secret sharing (Shamir 1979, doi 10.1145/359168.359176) over the prime field of 2^256 + 297.

The field is the smallest prime one that holds every 32-byte secret, so a secret is shared whole. Its arithmetic is
Python's, whose running time depends on the numbers: that concerns who can measure the hospital's own processor.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dicom_node.core.errors import ProtocolError

from .messages import SHARE

PRIME: Final = 2**256 + 297
SECRET: Final = 32


def share(secret: bytes, threshold: int, users: Iterable[int]) -> dict[int, bytes]:
    """Share a secret of 32 bytes: any `threshold` shares give it back, fewer tell nothing.

    Parameters
    ----------
    secret : bytes
    threshold : int
        At least 1.
    users : iterable of int
        Positive and distinct; the places at which the polynomial is evaluated.

    Returns
    -------
    dict of int to bytes
        33 bytes for each user, big-endian.
    """
    points = list(users)
    if len(secret) != SECRET or not 1 <= threshold <= len(points):
        raise ValueError("a secret has 32 bytes, and there are at least as many users as the threshold")
    if len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("users are positive and distinct: a share at 0 would be the secret")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [int.from_bytes(secret, "big")]
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:  # Horner's rule, highest power first
            value = (value * point + coefficient) % PRIME
        shares[point] = value.to_bytes(SHARE, "big")
    return shares


def weights(users: Sequence[int]) -> list[int]:
    """Lagrange's coefficients at 0 for shares of `users`; the same for every secret, so computed once."""
    found = []
    for user in users:
        above = below = 1
        for other in users:
            if other != user:
                above = above * other % PRIME
                below = below * (other - user) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def combine(shares: Mapping[int, bytes], coefficients: Sequence[int]) -> bytes:
    """Give a secret back.

    Parameters
    ----------
    shares : mapping of int to bytes
        Exactly as many as the threshold: what a wrong share gives cannot be told from a secret here.
    coefficients : sequence of int
        `weights` of their users, in the same order.

    Raises
    ------
    ProtocolError
        They are not shares of a 32-byte secret (``wrong-share``).
    """
    total = 0
    for one, coefficient in zip(shares.values(), coefficients, strict=True):
        total += element(one) * coefficient
    secret = total % PRIME
    if secret >= 1 << (8 * SECRET):
        raise ProtocolError("shares do not belong together: a client dealt or gave a wrong one", code="wrong-share")
    return secret.to_bytes(SECRET, "big")


def element(share: bytes) -> int:
    """Read a share; its encoding is the only one of its value.

    Raises
    ------
    ProtocolError
        It is no element of the field (``wrong-share``).
    """
    value = int.from_bytes(share, "big")
    if len(share) != SHARE or value >= PRIME:
        raise ProtocolError("a share is no element of the field; a client broke the protocol", code="wrong-share")
    return value
