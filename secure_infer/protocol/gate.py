"""ReLU and truncation in one gate on secret-shared values, with tables from the dealer.

The value y, -2^(n-2) <= y < 2^(n-2) - 2^t, is opened as m = y + 2^(n-2) + R, R = R0 + R1, where
no party knows both masks. Then::

    y >> t     =  (m >> t) - 2^(n-2-t) - (R >> t) + 2^(n-t)·R_top·(1 - m_top)         one too large, or exact
    [y >= 0]   =  bit n-2 of m  xor  bit n-2 of R  xor  [m_low < R_low]

and the result is their product. It is floor(max(y, 0) / 2^t), or one more; a negative value always gives 0. Of m_low
and R_low only the bits from t (or a few below) up to n-3 count, as digits of six bits. Where all digits are equal,
m_low >= R_low is assumed: the truncation then gives 0. (It would be wrong for the 2^t largest values, hence the bound.)

The dealer shares the one-hot code of each digit of R, so 'equal' and 'less' for each digit are look-ups. Their bits are
opened under masks; shares of all products of these masks (`joins`, `products`) give the sum of products of opened bits
that is the whole comparison. The sign is opened under the mask rho, and with shares of rho, rho·(R >> t) and rho·R_top
the selection is linear. Party 0 expands its shares from its seed; party 1 receives its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError

from . import kernels
from .messages import Label
from .prg import Prg
from .ring import Ring, Words

Bytes = NDArray[np.uint8]
#: Where the masked sign stands beside the ten masked bits of the digits.
SIGN_BIT = 10
USED_BITS = (1 << SIGN_BIT) - 1


@cache
def _tables(digits: int) -> tuple[kernels.Array, kernels.Array]:
    return kernels.selections(digits)


@dataclass(frozen=True)
class Tables:
    """One party's shares of what the dealer knows about the masks of n values; views of one block of bytes."""

    hot: kernels.Array
    joins: kernels.Array
    words: Words
    products: kernels.Array
    wraps: kernels.Array


@dataclass(frozen=True)
class Gate:
    """The gate for `size` values of a ring, shifting by `shift`.

    Raises
    ------
    ConfigError
        More bits would have to be compared than the tables hold (``gate-shift``): 64-bit rings shift by 26 at least.
    """

    ring: Ring
    shift: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.shift <= 30 or not 1 <= self.digits <= kernels.MOST_DIGITS:
            raise ConfigError(
                f"a ring of {self.ring.bits} bits has no gate for a shift of {self.shift}", code="gate-shift"
            )

    @property
    def digits(self) -> int:
        """Digits that are compared."""
        return -(-(self.ring.bits - 2 - self.shift) // kernels.DIGIT)

    @property
    def table_bytes(self) -> int:
        """Length of one party's tables."""
        return self.size * (8 * self.digits + 8 + 3 * self.ring.width + 4 + 8)

    def view(self, block: Bytes) -> Tables:
        """Lay the tables over a block of `table_bytes` bytes."""
        found, start = [], 0
        word = f"<u{self.ring.width}"
        for kind, rows in (("<u8", self.digits), ("<u8", 1), (word, 3), ("<u4", 1), ("<u4", 2)):
            length = np.dtype(kind).itemsize * rows * self.size
            found.append(block[start : start + length].view(kind).reshape(rows, self.size))
            start += length
        hot, joins, words, products, wraps = found
        return Tables(hot, joins[0], words, products[0], wraps)

    def tables(self, number: int, bundle: Prg) -> Bytes:
        """Expand party 0's tables, at party 0 and at the dealer."""
        return bundle.stream(Label.GATE_TABLES, number, self.table_bytes)

    def cover(self, number: int, bundle: Prg, shape: tuple[int, ...]) -> Words:
        """Expand R0 + 2^(n-2), which party 0 adds to its share of the input."""
        offset = np.dtype(f"u{self.ring.width}").type(1 << (self.ring.bits - 2))
        covered: Words = bundle.words(Label.GATE_MASK, number, shape, self.ring) + offset
        return covered

    def deal(self, number: int, bundle: Prg, party: Prg, private: Prg) -> Bytes:
        """Make, at the dealer, party 1's tables."""
        mask = bundle.words(Label.GATE_MASK, number, (self.size,), self.ring)
        mask = mask + party.words(Label.PARTY_GATE_MASK, number, (self.size,), self.ring)
        bits = private.stream(Label.GATE_BITS, number, 2 * self.size).view("<u2")
        block = self.tables(number, bundle)
        to = self.view(block)
        kernels.deal(mask, bits, to.hot, to.joins, to.products, to.words, to.wraps, self.ring.bits, self.shift)
        return block

    def compare(self, opened: Words, tables: Tables) -> tuple[NDArray[np.uint16], Bytes]:
        """Compute a party's shares of the masked bits, and of 'less' for the highest digit, which it keeps."""
        masked, highest = np.empty(self.size, np.uint16), np.empty(self.size, np.uint8)
        kernels.compare(opened, tables.hot, tables.joins, tables.products, self.ring.bits, masked, highest)
        return masked, highest

    def sign(self, opened: Words, tables: Tables, bits: NDArray[np.uint16], highest: Bytes, party: int) -> Bytes:
        """Compute a party's share of the masked sign from the opened bits."""
        signs = np.empty(self.size, np.uint8)
        equal, less = _tables(self.digits)
        width = self.ring.bits
        kernels.sign(opened, tables.joins, tables.products, bits, highest, equal, less, width, party, signs)
        return signs

    def select(self, opened: Words, tables: Tables, signs: Bytes, party: int) -> Words:
        """Compute a party's share of the result from the opened masked signs."""
        shares = np.empty(self.size, f"u{self.ring.width}")
        kernels.select(opened, tables.words, tables.wraps, signs, self.ring.bits, self.shift, party, shares)
        return shares
