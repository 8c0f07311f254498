"""Pseudo-random ring elements: AES-128 in counter mode (NIST SP 800-38A) under keys from HKDF (RFC 5869, SHA-256)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from .messages import DOMAIN, Label
from .ring import Ring, Words

ZEROS = bytes(1 << 20)


@dataclass(frozen=True)
class Context:
    """What a bundle's keys are bound to: the same seed in any other context gives unrelated masks.

    Attributes
    ----------
    bundle : bytes
        The bundle's name, 16 bytes; see `bundle_name`.
    model : bytes
        SHA-256 of the model card.
    hospital, party : bytes
        Fingerprints of the certificates of party 0 and party 1.
    """

    bundle: bytes
    model: bytes
    hospital: bytes
    party: bytes


class Prg:
    """Streams of ring elements under one key.

    A label and a layer name a counter space: byte 0 of the 16-byte counter block is the label, bytes 1 to 3 are the
    layer, the low 8 bytes count blocks. The same name gives the same stream, so whoever draws must use each once.
    """

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES128(key)

    def words(self, label: Label, layer: int, shape: tuple[int, ...], ring: Ring) -> Words:
        """Draw an array of uniform ring elements."""
        data = self.stream(label, layer, prod(shape) * ring.width)
        return data.view(f"<u{ring.width}").astype(f"u{ring.width}", copy=False).reshape(shape)

    def stream(self, label: Label, layer: int, size: int) -> NDArray[np.uint8]:
        """Draw `size` uniform bytes, writable; the same stream as `words` reads."""
        counter = bytes([label]) + layer.to_bytes(3, "big") + bytes(12)
        cipher = Cipher(self._key, modes.CTR(counter)).encryptor()
        data = np.empty(size + 16, np.uint8)  # the cipher asks for a block more than it writes
        room = data.data
        for start in range(0, size, len(ZEROS)):
            count = min(len(ZEROS), size - start)
            cipher.update_into(memoryview(ZEROS)[:count], room[start:])
        return data[:size]


def bundle_masks(seed: bytes, context: Context) -> Prg:
    """Make the generator of r and k0, which only the dealer and party 0 can."""
    bound = context.bundle + context.model + context.hospital + context.party
    return Prg(_derive(seed, b"bundle" + bound, 16))


def bundle_name(seed: bytes) -> bytes:
    """Name a bundle by its seed, 16 bytes, telling nothing about it.

    A seed that comes again brings its name again, and both parties' ledgers refuse that: no mask is ever used twice,
    whatever the dealer's random generator or its backups do.
    """
    return _derive(seed, b"bundle name", 16)


def weight_mask_seed(master: bytes, model: bytes, hospital: bytes, party: bytes) -> bytes:
    """Derive the dealer's seed of b for one model and one pair of parties from its master key, 32 bytes.

    It must depend on the model: two weights under one b would reveal their difference.
    """
    return _derive(master, b"weight mask seed" + model + hospital + party, 32)


def gate_masks(seed: bytes, bundle: bytes) -> Prg:
    """Make the generator of R1 from the seed of b and a bundle's name, which only the dealer and party 1 can."""
    return Prg(_derive(seed, b"gate mask" + bundle, 16))


def private_masks(seed: bytes, weight_mask_seed: bytes) -> Prg:
    """Make the generator of what neither party may know: from a bundle's seed and from the seed of b, so by both alone.

    Party 0 knows the one and party 1 the other. In an audit party 0 opens its seed to party 1, which then needs no word
    of the dealer's to recompute everything; and a dealer that kept no seed cannot make these masks again either.
    """
    return Prg(_derive(seed, b"gate bits", 16, salt=weight_mask_seed))


def weight_masks(seed: bytes) -> Prg:
    """Make the generator of b, which only the dealer and party 1 can."""
    return Prg(_derive(seed, b"weight mask", 16))


def weight_mask_id(seed: bytes) -> bytes:
    """Name a weight mask without telling anything about it, 16 bytes."""
    return _derive(seed, b"weight mask id", 16)


def material_key(seed: bytes, bundle: bytes) -> bytes:
    """Derive from the seed of b the key of a bundle's hashes, 32 bytes, which only the dealer and party 1 can.

    Without a key, party 0, who knows r, k0 and W - b, could test a guess of W against a hash of b·r - k0.
    """
    return _derive(seed, b"material" + bundle, 32)


def tuple_seed(secret: bytes, name: bytes, holder: bytes) -> bytes:
    """Derive one party's seed of a bundle of tuples from the dealer's secret and what the bundle is bound to."""
    return _derive(secret, b"tuple seed" + name + holder, 32)


def tuple_masks(seed: bytes) -> Prg:
    """Make the generator of one party's tuples, which only the dealer and that party can."""
    return Prg(_derive(seed, b"tuples", 16))


def zero_sharing(seed: bytes) -> Prg:
    """Make the generator of shares of zero, which both parties can."""
    return Prg(_derive(seed, b"zero sharing", 16))


def _derive(secret: bytes, purpose: bytes, size: int, salt: bytes | None = None) -> bytes:
    return HKDF(hashes.SHA256(), size, salt=salt, info=DOMAIN + b"|" + purpose).derive(secret)
