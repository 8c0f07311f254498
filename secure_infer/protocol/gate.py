"""Gates on secret-shared values, with tables from the dealer: ReLU (or ReLU6) with truncation, and truncation alone.

The value y, -2^(n-2) <= y < 2^(n-2) - 2^t, is opened as m = y + 2^(n-2) + R modulo 2^n, R = R0 + R1, where no party
knows both masks. The lowest n bits of a ring's shares are shares modulo 2^n, so n may be less than the ring's. Then::

    y >> t     =  (m >> t) - 2^(n-2-t) - (R >> t) + 2^(n-t)·R_top·(1 - m_top)         one too large, or exact
    [y >= 0]   =  bit n-2 of m  xor  bit n-2 of R  xor  [m_low < R_low]

**ReLU** is their product. It is floor(max(y, 0) / 2^t), or one more; a negative value always gives 0. Of m_low
and R_low only the bits from t (or a few below) up to n-3 count, as digits of five or six bits. Where all are equal,
m_low >= R_low is assumed: the truncation then gives 0. (It would be wrong for the 2^t largest values, hence the bound.)

The dealer shares the one-hot code of each digit of R, so 'equal' and 'less' for each digit are look-ups. Their bits are
opened under masks; shares of all products of these masks (`joins`, `products`) give the sum of products of opened bits
that is the whole comparison. The sign is opened under the mask rho, and with shares of rho, rho·(R >> t) and rho·R_top
the selection is linear. Party 0 expands its shares from its seed; party 1 receives its own.

A **ceiling** C (ReLU6: 6) is a second comparison, of y - 2^t·C: m less 2^t·C hides it under the same R, so the one-hot
codes serve both, with masks of their own for what is opened. With u = [y >= 0] xor [y >= 2^t·C] the result is
u·(y >> t) + C·[y >= 2^t·C]: the selection takes the exclusive or of the two masked signs.

**Truncation** needs no comparison. Party 1 alone learns m; m_top is all that party 0 needs, one bit, uniform by R1.
R >> t and R_top are dealt so that party 0's share of the result is r but for a multiple of 2^(n-t)::

    party 0    r,  s and s' (t bits each)
    party 1    -(R >> t) - r - 2^(n-t)·s',  R_top - s

Party 0 answers e = s' + (1 - m_top)·s modulo 2^t, t bits, uniform by s'; party 1 adds 2^(n-t)·e.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError

from ..program import Gated, TruncationLayer
from . import kernels
from .messages import Label
from .prg import Prg
from .ring import Ring, Words

Bytes = NDArray[np.uint8]
Bits = NDArray[np.uint32]


@cache
def _tables(digits: int) -> tuple[kernels.Array, kernels.Array, kernels.Array]:
    return kernels.selections(digits)


@dataclass(frozen=True)
class _Gate:
    """What all gates have in common: `size` values of a ring are shifted by `shift` and hidden by R."""

    ring: Ring
    shift: int
    size: int

    @property
    def bits(self) -> int:
        """Lowest bits of the input's shares that are opened, n above."""
        return self.ring.bits

    def cover(self, number: int, bundle: Prg, shape: tuple[int, ...]) -> Words:
        """Expand R0 + 2^(n-2), which party 0 adds to its share of the input."""
        offset = np.dtype(f"u{self.ring.width}").type(1 << (self.bits - 2))
        covered: Words = bundle.words(Label.GATE_MASK, number, shape, self.ring) + offset
        return covered

    def _masks(self, number: int, bundle: Prg, party: Prg) -> Words:
        ours = bundle.words(Label.GATE_MASK, number, (self.size,), self.ring)
        return self.reduced(ours + party.words(Label.PARTY_GATE_MASK, number, (self.size,), self.ring))

    def reduced(self, words: Words) -> Words:
        """Take elements of the ring modulo 2^bits, in place."""
        if self.bits < self.ring.bits:
            words &= words.dtype.type((1 << self.bits) - 1)
        return words


@dataclass(frozen=True)
class Tables:
    """One party's shares of what the dealer knows about the masks of n values; views of one block of bytes."""

    hot: kernels.Array
    joins: kernels.Array
    words: Words
    wraps: kernels.Array
    products: kernels.Array


@dataclass(frozen=True)
class ReluGate(_Gate):
    """The gate for ReLU; with a `ceiling`, in units of the result, for what ReLU6 is.

    `needed` bits are opened and compared where the input is proven to need no more, and the result is right in its
    `kept` lowest bits where no more of them matter; all of the ring's where these are 0.

    Raises
    ------
    ConfigError
        More bits would have to be compared than the tables hold, or than there are (``gate-shift``): whole 64-bit rings
        shift by 26 at least.
    """

    ceiling: int = 0
    needed: int = 0
    kept: int = 0

    def __post_init__(self) -> None:
        possible = 1 <= self.shift <= 30 and 1 <= self.compared <= max(kernels.DIGITS) and self.bits <= self.ring.bits
        if not possible or self.low < 0:
            raise ConfigError(
                f"a ring of {self.ring.bits} bits has no gate of {self.bits} bits for a shift of {self.shift}",
                code="gate-shift",
            )

    @property
    def bits(self) -> int:
        """Lowest bits of the input's shares that are opened."""
        return self.needed or self.ring.bits

    @property
    def comparisons(self) -> int:
        """How often each value is compared."""
        return 2 if self.ceiling else 1

    @property
    def compared(self) -> int:
        """Bits that the comparison needs; it takes these, or a few more."""
        return self.bits - 2 - self.shift

    @property
    def digits(self) -> int:
        """Digits that are compared."""
        return kernels.digits_of(self.compared)[1]

    @property
    def low(self) -> int:
        """The lowest bit of m that counts; party 0 never sees those below."""
        return self.bits - 2 - prod(kernels.digits_of(self.compared))

    @property
    def seen_bits(self) -> int:
        """Bits of m that party 0 sees."""
        return self.bits - self.low

    @property
    def joined_bits(self) -> int:
        """Masked bits that are opened for each value to join the digits."""
        return 2 * (self.digits - 1) * self.comparisons

    @property
    def wrap_bytes(self) -> int:
        """Length of a share of a top bit, which counts 2^(n-t) modulo 2^kept."""
        return 4 if (self.kept or self.ring.bits) - self.bits + self.shift <= 32 else 8

    @property
    def table_bytes(self) -> int:
        """Length of one party's tables."""
        return max(end for _, _, end in _layout(self))

    material = table_bytes

    def view(self, block: Bytes) -> Tables:
        """Lay the tables over a block of `table_bytes` bytes."""
        views = [block[start:end].view(kind).reshape(-1, self.size) for kind, start, end in _layout(self)]
        return Tables(*views)

    def tables(self, number: int, bundle: Prg) -> Bytes:
        """Expand party 0's tables, at party 0 and at the dealer."""
        return bundle.stream(Label.GATE_TABLES, number, self.table_bytes)

    def deal(self, number: int, bundle: Prg, party: Prg, private: Prg) -> Bytes:
        """Make, at the dealer, party 1's tables."""
        mask = self._masks(number, bundle, party)
        bits = private.stream(Label.GATE_BITS, number, 2 * self.comparisons * self.size).view("<u2")
        block = self.tables(number, bundle)
        to = self.view(block)
        bits = bits.reshape(self.comparisons, self.size)
        _, less, subsets = _tables(self.digits)
        kernels.deal(
            mask, bits, to.hot, to.joins, to.products, to.words, to.wraps, subsets, less, self.bits, self.shift
        )
        return block

    def compare(self, opened: Words, tables: Tables) -> tuple[Bits, Bytes]:
        """Compute a party's shares of the masked bits, and of 'less' for the highest digit, which it keeps."""
        masked, highest = np.empty(self.size, np.uint32), np.empty((self.comparisons, self.size), np.uint8)
        kernels.compare(
            opened, self.ceiling << self.shift, tables.hot, tables.joins, tables.products, self.bits, masked,
            highest,
        )  # fmt: skip
        return masked, highest

    def sign(self, opened: Words, tables: Tables, bits: Bits, highest: Bytes, party: int) -> Bytes:
        """Compute a party's share of the masked signs, a bit for each comparison, from the opened bits."""
        signs = np.empty(self.size, np.uint8)
        equal, less, _ = _tables(self.digits)
        kernels.sign(
            opened, self.ceiling << self.shift, tables.joins, tables.products, bits, highest, equal, less, self.digits,
            self.bits, party, signs,
        )  # fmt: skip
        return signs

    def outcomes(self, opened: Words, tables: Tables, party: int) -> Words:
        """Compute a party's shares of the result, ceiling apart, for masked signs that are equal, and that differ."""
        shares = np.empty((2, self.size), f"u{self.ring.width}")
        kernels.outcomes(opened, tables.words, tables.wraps, self.bits, self.shift, party, shares)
        return shares

    def choose(self, outcomes: Words, tables: Tables, signs: Bytes, party: int) -> Words:
        """Take a party's share of the result by the opened masked signs."""
        shares = np.empty(self.size, f"u{self.ring.width}")
        kernels.choose(outcomes, tables.words[3:], signs, self.ceiling, party, shares)
        return shares


@dataclass(frozen=True)
class TruncationGate(_Gate):
    """The gate for truncation alone, by 1 to n - 3 bits.

    Raises
    ------
    ConfigError
        Another shift (``gate-shift``).
    """

    def __post_init__(self) -> None:
        if not 1 <= self.shift <= self.ring.bits - 3:
            raise ConfigError(
                f"a ring of {self.ring.bits} bits has no gate for a shift of {self.shift}", code="gate-shift"
            )

    @property
    def _kind(self) -> str:
        return "<u4" if self.shift <= 32 else "<u8"

    @property
    def table_bytes(self) -> int:
        """Length of party 0's tables."""
        return 2 * self.size * np.dtype(self._kind).itemsize

    @property
    def material(self) -> int:
        """Length of party 1's tables."""
        return self.size * (self.ring.width + np.dtype(self._kind).itemsize)

    def tables(self, number: int, bundle: Prg) -> Bytes:
        """Expand party 0's tables, at party 0 and at the dealer."""
        return bundle.stream(Label.GATE_TABLES, number, self.table_bytes)

    def deal(self, number: int, bundle: Prg, party: Prg, private: Prg) -> Bytes:
        """Make, at the dealer, party 1's tables; it needs no bits of its own."""
        block = np.empty(self.material, np.uint8)
        words, wraps = self._view(block)
        results = bundle.words(Label.INPUT_MASK, number, (self.size,), self.ring)
        seen = self.tables(number, bundle).view(self._kind).reshape(2, self.size)
        mask = self._masks(number, bundle, party)
        kernels.deal_truncation(mask, results, seen, words, wraps, self.ring.bits, self.shift)
        return block

    def truncate(self, opened: Words, block: Bytes) -> tuple[Bytes, Words]:
        """Give, at party 1, the highest bit of each opened value, and its share of the result without the answer."""
        words, wraps = self._view(block)
        shares = np.empty(self.size, f"u{self.ring.width}")
        kernels.truncate(opened, words, wraps, self.ring.bits, self.shift, shares)
        return (opened >> opened.dtype.type(self.ring.bits - 1)).astype(np.uint8), shares

    def answer(self, tops: Bytes, block: Bytes) -> kernels.Array:
        """Give, at party 0, e; only its `shift` lowest bits count."""
        seen = block.view(self._kind).reshape(2, self.size)
        answer: kernels.Array = seen[1] + np.where(tops, seen.dtype.type(0), seen[0])
        return answer

    def _view(self, block: Bytes) -> tuple[Words, kernels.Array]:
        length = self.size * self.ring.width
        return block[:length].view(f"<u{self.ring.width}"), block[length:].view(self._kind)


Gate = ReluGate | TruncationGate


@cache
def _layout(gate: ReluGate) -> tuple[tuple[np.dtype[Any], int, int], ...]:
    """Lay out the tables of a block: type of each, and where it begins and ends; those of wide elements come first."""
    each, (size, digits), most = gate.comparisons, kernels.digits_of(gate.compared), gate.digits > 5
    kinds = (
        f"<u{4 if size == 5 else 8}",
        f"<u{8 if most else 4}",
        f"<u{gate.ring.width}",
        f"<u{gate.wrap_bytes}",
        f"<u{4 if most else 2}",
    )
    tables = [(np.dtype(kind), rows) for kind, rows in zip(kinds, (digits, each, 2 + each, 2, each), strict=True)]
    found, start = {}, 0
    for place in sorted(range(len(tables)), key=lambda one: -tables[one][0].itemsize):
        kind, rows = tables[place]
        found[place] = kind, start, start + kind.itemsize * rows * gate.size
        start = found[place][2]
    return tuple(found[place] for place in range(len(tables)))


def gate_of(layer: Gated, ring: Ring, size: int, fraction_bits: int, kept: int = 0) -> Gate:
    """Make the gate of a layer whose result has these fractional bits and matters in its `kept` lowest ones.

    Errors are the gates'.
    """
    if isinstance(layer, TruncationLayer):
        return TruncationGate(ring, layer.shift, size)
    needed = layer.bits or 0
    if layer.ceiling is None:
        return ReluGate(ring, layer.shift, size, needed=needed, kept=kept)
    ceiling = round(layer.ceiling * 2.0**fraction_bits)
    if not 1 <= ceiling << layer.shift < 1 << ((needed or ring.bits) - 2):
        raise ConfigError(f"the ceiling of layer {layer.name} does not fit its scale", code="gate-shift")
    return ReluGate(ring, layer.shift, size, ceiling, needed, kept)
