"""Numbers of any count of bits, one after the other without gaps: what a gate opens takes no byte too many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError

from . import kernels
from .messages import Vector


def packed_bytes(count: int, size: int) -> int:
    """Return the length of `count` numbers of `size` bits each."""
    return -(-count * size // 8)


def pack(values: kernels.Array, size: int, low: int = 0) -> NDArray[np.uint8]:
    """Write of each number the `size` bits from bit `low` on; the first number stands in the lowest bits."""
    if size == 1 and values.dtype == np.uint8:
        return np.packbits(values.reshape(-1) >> np.uint8(low) & np.uint8(1), bitorder="little")
    words = np.zeros(-(-values.size * size // 64), np.uint64)
    if size:
        kernels.pack(values.reshape(-1), low, size, words)
    return words.astype("<u8", copy=False).view(np.uint8)[: packed_bytes(values.size, size)]


def unpack(data: Vector, count: int, size: int, kind: str = "u8", low: int = 0) -> kernels.Array:
    """Read `count` numbers that `pack` wrote, as an array of `kind`, from bit `low` on.

    Raises
    ------
    ProtocolError
        Not exactly their bytes (``wrong-size``), or a bit behind the last one is set (``malformed-message``).
    """
    length = packed_bytes(count, size)
    if len(data) != length:
        raise ProtocolError(f"the peer sent {len(data)} bytes where {length} belong", code="wrong-size")
    if count * size % 8 and data[-1] >> (count * size % 8):
        raise ProtocolError("the peer set bits that have no meaning", code="malformed-message")
    if size == 1 and low == 0:
        return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little").astype(kind, copy=False)
    found = np.zeros(count, kind)
    if size:
        words = np.zeros(-(-length // 8), "<u8")
        words.view(np.uint8)[:length] = np.frombuffer(data, np.uint8)
        kernels.unpack(words.astype(np.uint64, copy=False), low, size, found)
    return found
