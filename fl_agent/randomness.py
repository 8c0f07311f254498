"""Noise and coin flips that nobody can predict: AES-256 in counter mode (NIST SP 800-38A), keyed by the kernel.

torch's generators are seeded with 32 to 64 bits and are not cryptographic: who guesses the seed subtracts the noise.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy.special import ndtri


class SecureSource:
    """A stream of random numbers.

    Parameters
    ----------
    key : bytes, optional
        32 bytes, FOR TESTS ALONE: who knows the key knows the noise, and the privacy is void. Without it a fresh key
        comes from the operating system and is never stored.
    """

    def __init__(self, key: bytes | None = None) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32) if key is None else key), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Draw `count` numbers, uniform on 0 to 2^64 - 1."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def below(self, limit: int, count: int) -> NDArray[np.int64]:
        """Draw `count` whole numbers, exactly uniform on 0 to limit - 1; `limit` is at most 2^62."""
        shift = np.uint64(64 - max(1, (limit - 1).bit_length()))
        drawn = np.empty(0, dtype=np.int64)
        while len(drawn) < count:  # what is not below is drawn again: a remainder would favour small numbers
            found = (self.words(2 * (count - len(drawn)) + 8) >> shift).astype(np.int64)
            drawn = np.concatenate([drawn, found[found < limit]])
        return drawn[:count]

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Draw `count` numbers, uniform on the 2^53 midpoints of (0, 1); never 0 or 1."""
        drawn: NDArray[np.float64] = ((self.words(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        # The topmost midpoint rounds to 1 in binary64, where the normal quantile is infinite.
        return np.minimum(drawn, 1.0 - 2.0**-53)

    def normal(self, count: int) -> NDArray[np.float64]:
        """Draw `count` standard normal numbers that the gaps between floating-point numbers do not betray.

        A single draw reaches only part of the binary64 numbers, and which sums with it are possible tells the value
        it was added to (Mironov 2012; Jin et al., arXiv 2112.05307). So, as Opacus does in its secure mode, each
        number is the sum of four draws over 2: to undo it an attacker searches about 2^159 combinations instead of
        2^53 (Holohan & Braghin, arXiv 2107.10138, section 5.1, n = 2).
        """
        draws: NDArray[np.float64] = ndtri(self.uniform(4 * count)).reshape(4, count).sum(0) / 2.0
        return draws

    def coins(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Flip `count` independent coins (Poisson sampling)."""
        flips: NDArray[np.bool_] = self.uniform(count) < probability
        return flips
