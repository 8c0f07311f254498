"""Seals a bundle's seed to party 0's key: HPKE (RFC 9180), base mode, X25519, HKDF-SHA-256 and AES-128-GCM."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from dicom_node.core.errors import ProtocolError

from .messages import DOMAIN

SUITE: Final = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
#: Length of a sealed seed: an ephemeral public key, 32 bytes, a tag of 16.
SEALED_BYTES: Final = 80


def seal(seed: bytes, sealing_key: bytes, digest: bytes) -> bytes:
    """Encrypt a seed so that only party 0 can read it, and only as that of one manifest.

    Parameters
    ----------
    seed : bytes
        32 bytes.
    sealing_key : bytes
        Party 0's X25519 public key, 32 bytes.
    digest : bytes
        Of the bundle's manifest; bound through HPKE's ``info``, which for a single message does what associated data
        would do.

    Returns
    -------
    bytes
        80 bytes. Whoever sealed keeps nothing that could open them.

    Raises
    ------
    ProtocolError
        The public key is one of the few with which every secret is the same (``sealing-key``).
    """
    try:
        return SUITE.encrypt(seed, X25519PublicKey.from_public_bytes(sealing_key), _info(digest))
    except ValueError as error:
        raise ProtocolError("the hospital's sealing key is unfit", code="sealing-key") from error


def unseal(sealed: bytes, key: X25519PrivateKey, digest: bytes) -> bytes:
    """Read what `seal` wrote.

    Raises
    ------
    ProtocolError
        It was sealed to another key, for another manifest, or altered (``seed-unreadable``).
    """
    try:
        return SUITE.decrypt(sealed, key, _info(digest))
    except (InvalidTag, ValueError) as error:
        raise ProtocolError("the dealer's seed cannot be read with this site's key", code="seed-unreadable") from error


def _info(digest: bytes) -> bytes:
    return DOMAIN + b"|seed" + digest
