"""Masks: AES-256 in counter mode (NIST SP 800-38A) under keys from HKDF-SHA-256 (RFC 5869), as words mod 2^32.

2^b divides 2^32, so a uniform word is uniform mod 2^b too: all rings share these streams, and only packing differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError

from .messages import KEY, Label, labelled

Words = NDArray[np.uint32]
#: Words of each stream at a time: stream and sum stay in the processor's cache (256 KiB).
CHUNK: Final = 1 << 16


def agree(secret: X25519PrivateKey, public: bytes) -> bytes:
    """KA.agree: the shared secret of X25519 (RFC 7748), 32 bytes, to be derived from and never used itself.

    Raises
    ------
    ProtocolError
        The other key is a point of small order, with which anybody knows the result (``weak-key``).
    """
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError(
            "a peer advertised a key without secrecy; remove it from the roster", code="weak-key"
        ) from error


def channel_key(shared: bytes, round_id: bytes, sender: int, to: int) -> bytes:
    """Derive the key that seals what `sender` tells `to`; each direction has its own, 32 bytes."""
    return _derive(shared, Label.CHANNEL, round_id, sender.to_bytes(2, "big"), to.to_bytes(2, "big"))


def pairwise_key(shared: bytes, round_id: bytes, keys: dict[int, bytes]) -> bytes:
    """Derive the key of p_{u,v} from s_{u,v}, the same for both.

    Parameters
    ----------
    shared : bytes
        KA.agree(s_u^SK, s_v^PK).
    round_id : bytes
    keys : dict of int to bytes
        s^PK of the two, by user. They enter the key, for X25519 has several encodings of one point.
    """
    bound = [user.to_bytes(2, "big") + keys[user] for user in sorted(keys)]
    return _derive(shared, Label.PAIRWISE_MASK, round_id, *bound)


def self_mask_key(seed: bytes, round_id: bytes, user: int) -> bytes:
    """Derive the key of p_u from b_u."""
    return _derive(seed, Label.SELF_MASK, round_id, user.to_bytes(2, "big"))


def commitment(seed: bytes, round_id: bytes, user: int) -> bytes:
    """Commit to b_u: 256 random bits hide behind SHA-256, and no second b_u fits."""
    return hashlib.sha256(labelled(Label.COMMITMENT, round_id, user.to_bytes(2, "big"), seed)).digest()


def add_masks(words: Words, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add the streams of the keys `plus` to `words`, and subtract those of `minus`, in place, mod 2^32.

    Every key is good for one stream, which starts at counter 0: a key used twice would cancel.

    Parameters
    ----------
    words : ndarray of uint32, shape (dimension,)
    plus, minus : sequence of bytes
        32 bytes each.
    """
    zeros = memoryview(bytes(4 * CHUNK))
    drawn = bytearray(4 * CHUNK + 16)  # the cipher asks for a block more than it writes
    stream = np.frombuffer(drawn, dtype="<u4")
    signed = [(np.add, key) for key in plus] + [(np.subtract, key) for key in minus]
    steps = [(step, Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()) for step, key in signed]
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK]
        size = len(part)
        for step, cipher in steps:
            cipher.update_into(zeros[: 4 * size], drawn)
            step(part, stream[:size], out=part)


def _derive(secret: bytes, label: Label, round_id: bytes, *bound: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY, salt=round_id, info=labelled(label, *bound)).derive(secret)
