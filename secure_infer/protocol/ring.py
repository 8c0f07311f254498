"""The ring of integers modulo 2^64 (or 2^32) and fixed-point numbers in it; out-of-range values never wrap silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError, ProtocolError

from .messages import Vector

Words = NDArray[np.unsignedinteger[Any]]


def packed(*arrays: NDArray[np.unsignedinteger[Any]]) -> Vector:
    """Write arrays one after the other, little-endian, rows first; a single one may be seen, not copied."""
    flat = [np.ascontiguousarray(one, one.dtype.newbyteorder("<")).reshape(-1).view(np.uint8) for one in arrays]
    return (flat[0] if len(flat) == 1 else np.concatenate([*flat, np.empty(0, np.uint8)])).data.toreadonly()


@dataclass(frozen=True)
class Ring:
    """Integers modulo 2^bits.

    Attributes
    ----------
    bits : int
        32 or 64. NumPy's unsigned types wrap at exactly these.
    """

    bits: int

    @property
    def width(self) -> int:
        """Length of an element, bytes."""
        return self.bits // 8

    def encode(self, values: NDArray[np.float64], fraction_bits: int) -> Words:
        """Round real values to fixed point.

        Parameters
        ----------
        values : ndarray of float64
        fraction_bits : int
            An element stands for its signed value times 2^-fraction_bits.

        Raises
        ------
        ConfigError
            A value is not a number or does not fit (``ring-overflow``); callers check their own, tighter bounds before.
        """
        scaled = np.rint(np.ldexp(values, fraction_bits))
        if not (np.abs(scaled) < 2.0 ** (self.bits - 1)).all():
            raise ConfigError("a value does not fit the ring: the model's program is wrong", code="ring-overflow")
        return scaled.astype(np.int64).astype(f"u{self.width}")

    def decode(self, words: Words, fraction_bits: int) -> NDArray[np.float64]:
        """Read elements as signed fixed-point numbers."""
        signed = words.view(f"i{self.width}").astype(np.float64)
        return np.ldexp(signed, -fraction_bits)

    def to_bytes(self, arrays: Sequence[Words]) -> Vector:
        """Write arrays one after the other, little-endian, rows first."""
        return packed(*(one.astype(f"u{self.width}", copy=False) for one in arrays))

    def from_bytes(self, data: Vector, shape: tuple[int, ...]) -> Words:
        """Read one array.

        Raises
        ------
        ProtocolError
            Not exactly the bytes of that shape (``wrong-size``).
        """
        (words,) = self.split(data, [shape])
        return words

    def split(self, data: Vector, shapes: Sequence[tuple[int, ...]]) -> list[Words]:
        """Read arrays that stand one after the other.

        Raises
        ------
        ProtocolError
            Not exactly the bytes of those shapes (``wrong-size``).
        """
        sizes = [prod(shape) * self.width for shape in shapes]
        if len(data) != sum(sizes):
            raise ProtocolError(f"the peer sent {len(data)} bytes where {sum(sizes)} belong", code="wrong-size")
        found, position = [], 0
        for size, shape in zip(sizes, shapes, strict=True):
            part = np.frombuffer(data, f"<u{self.width}", size // self.width, position)
            found.append(part.astype(f"u{self.width}", copy=False).reshape(shape))
            position += size
        return found
