"""The loops of gates and convolutions, compiled (numba); `gate.py` and `layers.py` say what they compute and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numba.extending import intrinsic
from numpy.typing import NDArray

#: By the most bits that are compared: bits of a digit, number of digits. A word of 32 or 64 bits tells by its one set
#: bit which digit of 5 or 6 bits it is. All products of six digits' masks fit 64 bits, those of five 32, and leave two.
DIGITS: Final = {5 * count: (5, count) for count in range(1, 7)} | {36: (6, 6)}
#: Values that stay in the nearest cache while a loop comes back to them.
BLOCK: Final = 512

Array = NDArray[Any]
_Loop = TypeVar("_Loop", bound=Callable[..., Any])
_U = np.uint64
_0, _1, _31 = _U(0), _U(1), _U(31)


def _compiled(function: _Loop) -> _Loop:
    try:
        return cast(_Loop, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        # Neither this folder nor the user's cache can be written: then each process compiles for itself.
        return cast(_Loop, numba.njit(nogil=True)(function))


def digits_of(compared: int) -> tuple[int, int]:
    """Return the bits of a digit, and how many digits, for a comparison of 1 to 36 bits."""
    return next(found for most, found in DIGITS.items() if compared <= most)


def selections(digits: int) -> tuple[Array, Array, Array]:
    """Tables that join the digits: by opened equalities, and by opened comparisons, which bits of a word count.

    A third one gives, by masks of equalities, the products of all sets of these masks: bit S is that of set S.

    Block k of a word, 2^(k+1) bits from bit 2^(k+1) - 2, is indexed by sets S of masks of the first k+1 equalities. The
    product of (opened xor mask) over these equalities is the sum over S of the product of the masks in S where all
    opened bits outside S are 1. The two highest bits of the word always count; it has 32 bits for up to five digits, or
    64.
    """
    kind = np.dtype(np.uint64 if digits > 5 else np.uint32)
    one, flags = kind.type(1), kind.type(3 << (8 * kind.itemsize - 2))
    equal, less, subsets = np.zeros(32, kind), np.zeros(32, kind), np.zeros(32, kind)
    for word in range(32):
        for chosen in range(1 << (digits - 1)):
            if chosen & word == chosen:
                subsets[word] |= one << kind.type(chosen)
        for k in range(digits - 1):
            full, start = (1 << (k + 1)) - 1, (1 << (k + 1)) - 2
            for chosen in range(full + 1):
                if full & ~chosen & ~word == 0:
                    equal[word] |= one << kind.type(start + chosen)
            if word >> k & 1:
                less[word] |= kind.type((1 << (full + 1)) - 1) << kind.type(start)
        equal[word] |= flags
    return equal, less, subsets


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _ones(_: Any, word: Any) -> Any:
    """Count the set bits of a word, by one instruction."""
    return word(word), lambda _, builder, __, given: builder.ctpop(given[0])


@_compiled
def _parity(word: Any) -> Any:
    return _ones(word) & _1


@_compiled
def _spread(product: Any) -> Any:
    """Repeat the first 2, 4, 8, 16 and 32 bits, where the blocks of a word stand; see `selections`."""
    found = _0
    for k in range(5):
        size = 1 << (k + 1)
        found |= (product & ((_1 << _U(size)) - _1)) << _U(size - 2)
    return found


@_compiled
def deal(
    masks: Array, bits: Array, hot: Array, joins: Array, products: Array, words: Array, wraps: Array, subsets: Array,
    less: Array, width: int, shift: int,
) -> None:  # fmt: skip
    """Turn party 0's shares of a gate's tables into party 1's, in place.

    Parameters
    ----------
    masks : ndarray, shape (n,)
        R.
    bits : ndarray of uint16, shape (comparisons, n)
        Masks of equalities (5 bits), comparisons of digits (5) and the sign (1).
    hot : ndarray of uint32 or uint64, shape (digits, n)
        One-hot digits of R, highest first; exclusive-or shares.
    joins, products : ndarray, shape (comparisons, n)
        Products of masks, see `gate.py`; exclusive-or shares.
    words : ndarray, shape (2 + comparisons, n)
        R >> shift, the mask of all signs together, the product of these, the mask of the second sign; additive shares.
    wraps : ndarray of uint32 or uint64, shape (2, n)
        The highest bit of R, its product with the mask of all signs; additive shares.
    subsets, less : ndarray, shape (32,)
        From `selections`.
    """
    digits, size = hot.shape[0], 5 if hot.itemsize == 4 else 6
    low, most, flags = width - 2 - size * digits, _U((1 << size) - 1), _U(8 * joins.itemsize - 2)
    for which in range(joins.shape[0]):
        for i in range(masks.size):
            b = _U(bits[which, i])
            product = subsets[b & _31]
            chosen = _spread(product) & less[(b >> _U(5)) & _31]
            sign = ((_U(masks[i]) >> _U(width - 2)) & _1) | ((b >> _U(10)) & _1) << _1
            joins[which, i] ^= chosen | sign << flags
            products[which, i] ^= product
    for first in range(0, masks.size, BLOCK):
        last = min(masks.size, first + BLOCK)
        for j in range(digits):
            line, place = hot[j], _U(low + size * (digits - 1 - j))
            for i in range(first, last):
                line[i] ^= _1 << ((_U(masks[i]) >> place) & most)
        for i in range(first, last):
            r = _U(masks[i])
            rho = (_U(bits[0, i]) >> _U(10)) & _1
            if words.shape[0] > 3:
                second = (_U(bits[1, i]) >> _U(10)) & _1
                words[3, i] = second - words[3, i]
                rho ^= second
            top = r >> _U(shift)
            wrap = (r >> _U(width - 1)) & _1
            words[0, i] = top - words[0, i]
            words[1, i] = rho - words[1, i]
            words[2, i] = rho * top - words[2, i]
            wraps[0, i] = wrap - wraps[0, i]
            wraps[1, i] = rho * wrap - wraps[1, i]


@_compiled
def compare(
    opened: Array, bound: int, hot: Array, joins: Array, products: Array, width: int, masked: Array, highest: Array
) -> None:
    """Look up a party's shares of 'equal' and 'less' for each digit; mask them, but for the highest digit's 'less'.

    Comparison k is of the opened values less k times the bound. Its bits follow those of the comparison before.
    """
    digits, size = hot.shape[0], 5 if hot.itemsize == 4 else 6
    low, most = _U(width - 2 - size * digits), _U((1 << size) - 1)
    values, found = np.empty(BLOCK, hot.dtype), np.empty(BLOCK, np.uint32)
    for which in range(joins.shape[0]):
        start = _U(2 * (digits - 1) * which)
        offset = _U(which) * _U(bound)
        for first in range(0, opened.size, BLOCK):
            # Digit by digit over a block: each of these loops runs on whole vector registers.
            count = min(BLOCK, opened.size - first)
            given = opened[first : first + count]
            join, product = joins[which, first : first + count], products[which, first : first + count]
            for i in range(count):
                values[i] = (_U(given[i]) - offset) >> low
                found[i] = 0
            for j in range(digits):
                line, place = hot[j, first : first + count], _U(size * (digits - 1 - j))
                if j + 1 < digits:
                    mask, to = _U(1 << j), _U(j)
                    for i in range(count):
                        above = line[i] >> ((values[i] >> place) & most)
                        found[i] ^= ((above ^ (_U(product[i]) >> mask)) & _1) << to
                if j == 0:
                    top = highest[which, first : first + count]
                    for i in range(count):
                        top[i] = _parity(line[i] >> ((values[i] >> place) & most) >> _1)
                else:
                    mask, to = _U((1 << j) - 2), _U(digits - 2 + j)
                    for i in range(count):
                        less = _parity(line[i] >> ((values[i] >> place) & most) >> _1)
                        found[i] ^= ((less ^ (join[i] >> mask)) & _1) << to
            to_all = masked[first : first + count]
            for i in range(count):
                to_all[i] = (_U(to_all[i]) if which else _0) | (found[i] << start)


@_compiled
def sign(
    opened: Array, bound: int, joins: Array, products: Array, bits: Array, highest: Array, equal: Array, less: Array,
    digits: int, width: int, party: int, signs: Array,
) -> None:  # fmt: skip
    """Join the opened bits of all digits to a party's share of the masked sign, one bit for each comparison."""
    each = (_1 << _U(digits - 1)) - _1
    for which in range(joins.shape[0]):
        start = 2 * (digits - 1) * which
        for i in range(opened.size):
            word = _U(bits[i]) >> _U(start)
            spread = _spread(_U(products[which, i]))
            chosen = equal[word & each] & (joins[which, i] ^ (spread & less[(word >> _U(digits - 1)) & each]))
            found = _parity(chosen) ^ _U(highest[which, i])
            if party == 0:
                found ^= ((_U(opened[i]) - _U(which) * _U(bound)) >> _U(width - 2)) & _1
            signs[i] = (_U(signs[i]) if which else _0) | (found << _U(which))


@_compiled
def outcomes(opened: Array, words: Array, wraps: Array, width: int, shift: int, party: int, shares: Array) -> None:
    """Give a party's shares of what is selected by the mask of all signs, and of the shifted value less that."""
    for i in range(opened.size):
        m = _U(opened[i])
        public = (m >> _U(shift)) - (_1 << _U(width - 2 - shift))
        back = _0 if (m >> _U(width - 1)) & _1 else _1 << _U(width - shift)
        value = back * _U(wraps[0, i]) - _U(words[0, i])
        if party == 0:
            value += public
        hidden = public * _U(words[1, i]) - _U(words[2, i]) + back * _U(wraps[1, i])
        shares[0, i] = hidden
        shares[1, i] = value - hidden


@_compiled
def choose(outcomes: Array, seconds: Array, signs: Array, ceiling: int, party: int, shares: Array) -> None:
    """Give a party's share of the shifted, rectified value; above the ceiling, of the ceiling."""
    for i in range(signs.size):
        signed = _U(signs[i])
        equal, other = _U(outcomes[0, i]), _U(outcomes[1, i])
        share = other if (signed ^ (signed >> _1)) & _1 else equal
        if seconds.shape[0] > 0:
            above = _U(seconds[0, i])
            if (signed >> _1) & _1:
                above = (_1 if party == 0 else _0) - above
            share += _U(ceiling) * above
        shares[i] = share


@_compiled
def deal_truncation(
    masks: Array, results: Array, seen: Array, words: Array, wraps: Array, width: int, shift: int
) -> None:
    """Make party 1's tables of a truncation gate.

    Parameters
    ----------
    masks, results : ndarray, shape (n,)
        R and r.
    seen : ndarray of uint64 or uint32, shape (2, n)
        Party 0's tables, s and s' in `gate.py`.
    words : ndarray, shape (n,)
        Written: -(R >> shift) - r - 2^(width-shift)·s'.
    wraps : ndarray, shape (n,)
        Written: the highest bit of R less s.
    """
    step = _1 << _U(width - shift)
    for i in range(masks.size):
        r = _U(masks[i])
        words[i] = _0 - (r >> _U(shift)) - _U(results[i]) - step * _U(seen[1, i])
        wraps[i] = (r >> _U(width - 1)) - _U(seen[0, i])


@_compiled
def truncate(opened: Array, words: Array, wraps: Array, width: int, shift: int, shares: Array) -> None:
    """Give party 1's share of the shifted value, as far as it is known without party 0's answer."""
    step = _1 << _U(width - shift)
    for i in range(opened.size):
        m = _U(opened[i])
        back = _0 if m >> _U(width - 1) else step
        shares[i] = (m >> _U(shift)) - (_1 << _U(width - 2 - shift)) + _U(words[i]) + back * _U(wraps[i])


@_compiled
def pack(values: Array, low: int, size: int, packed: Array) -> None:
    """Write the `size` bits from bit `low` on of each value, one after the other without gaps, into words of 64."""
    most = ~_0 >> _U(64 - size)
    kept, filled, place = _0, 0, 0
    for i in range(values.size):
        value = (_U(values[i]) >> _U(low)) & most
        kept |= value << _U(filled)
        filled += size
        if filled >= 64:
            packed[place] = kept
            place += 1
            filled -= 64
            kept = value >> _U(size - filled) if filled else _0
    if filled:
        packed[place] = kept


@_compiled
def unpack(packed: Array, low: int, size: int, values: Array) -> None:
    """Read what `pack` wrote; bits outside the written ones become 0."""
    most = ~_0 >> _U(64 - size)
    for i in range(values.size):
        place, used = (i * size) >> 6, (i * size) & 63
        value = packed[place] >> _U(used)
        if used + size > 64:
            value |= packed[place + 1] << _U(64 - used)
        values[i] = (value & most) << _U(low)


@_compiled
def unroll(values: Array, kernel: Any, stride: Any, padding: Any, columns: Array) -> None:
    """Write the windows of an image side by side; what lies outside it stays 0.

    Parameters
    ----------
    values : ndarray, shape (channels, rows, columns)
    columns : ndarray, shape (channels * kernel rows * kernel columns, output rows, output columns)
    """
    channels, height, width = values.shape
    _, rows, across = columns.shape
    for channel in range(channels):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                to = columns[(channel * kernel[0] + i) * kernel[1] + j]
                for y in range(rows):
                    row = y * stride[0] + i - padding[0]
                    if 0 <= row < height:
                        for x in range(across):
                            column = x * stride[1] + j - padding[1]
                            if 0 <= column < width:
                                to[y, x] = values[channel, row, column]


@_compiled
def _four(line: Any, k: int, last: int) -> Any:
    """Take four weights from the k-th on, zeros from the `last` on."""
    zero = line[k] & _0
    return (
        _U(line[k]),
        _U(line[k + 1] if k + 1 < last else zero),
        _U(line[k + 2] if k + 2 < last else zero),
        _U(line[k + 3] if k + 3 < last else zero),
    )


@_compiled
def multiply(left: Array, right: Array, result: Array) -> None:
    """Add left @ right to result, in blocks that stay in the cache and lines that fill vector registers.

    Four lines of `right` at a time enter four lines of the result: what is loaded once makes four products.
    """
    out, inner = left.shape
    across = right.shape[1]
    whole = out - out % 4
    for start in range(0, across, BLOCK):
        end = min(across, start + BLOCK)
        for first in range(0, inner, 64):
            last = min(inner, first + 64)
            for block in range(0, whole, 4):
                a, b = result[block, start:end], result[block + 1, start:end]
                c, d = result[block + 2, start:end], result[block + 3, start:end]
                for k in range(first, last, 4):
                    p, q = _four(left[block], k, last), _four(left[block + 1], k, last)
                    r, s = _four(left[block + 2], k, last), _four(left[block + 3], k, last)
                    e, f = right[k, start:end], right[min(k + 1, last - 1), start:end]
                    g, h = right[min(k + 2, last - 1), start:end], right[min(k + 3, last - 1), start:end]
                    for x in range(end - start):
                        t, u, v, w = _U(e[x]), _U(f[x]), _U(g[x]), _U(h[x])
                        a[x] += p[0] * t + p[1] * u + p[2] * v + p[3] * w
                        b[x] += q[0] * t + q[1] * u + q[2] * v + q[3] * w
                        c[x] += r[0] * t + r[1] * u + r[2] * v + r[3] * w
                        d[x] += s[0] * t + s[1] * u + s[2] * v + s[3] * w
            for one in range(whole, out):
                a = result[one, start:end]
                for k in range(first, last, 4):
                    p = _four(left[one], k, last)
                    e, f = right[k, start:end], right[min(k + 1, last - 1), start:end]
                    g, h = right[min(k + 2, last - 1), start:end], right[min(k + 3, last - 1), start:end]
                    for x in range(end - start):
                        a[x] += p[0] * _U(e[x]) + p[1] * _U(f[x]) + p[2] * _U(g[x]) + p[3] * _U(h[x])
