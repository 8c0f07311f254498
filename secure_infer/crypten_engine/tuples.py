"""Beaver triples and their kin (Beaver 1991; Knott et al. 2021, section 4) for a program, in the order of their use.

Every half is expanded from a seed (`protocol.prg`), except for what must fit both halves: that is party 1's correction,
which the dealer computes. A truncation takes R, R >> t and the highest bit of R, which make it exact to one unit in the
last place; CrypTen's own is wrong by 2^(64 - t) with a probability of |value| / 2^64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

import numpy as np

from dicom_node.core.errors import ConfigError

from ..program import ConvolutionLayer, DenseLayer, Program, ReluLayer, shapes_of, weight_shape
from ..protocol.layers import weigh
from ..protocol.messages import Label, Vector
from ..protocol.plan import Plan
from ..protocol.prg import Prg
from ..protocol.ring import Ring, Words

RING: Final = Ring(64)
Shape = tuple[int, ...]
Kind = Literal["conv2d", "matmul", "mul", "and", "bit", "truncation"]
#: Keeps what is truncated from being negative.
OFFSET = 1 << 62
#: Levels of the adder with which CrypTen turns arithmetic shares into binary ones.
LEVELS = 6


@dataclass(frozen=True)
class Request:
    """One piece of correlated randomness.

    Attributes
    ----------
    number : int
        Its place in the program's order, which also names its streams.
    kind : str
        ``conv2d``, ``matmul``, ``mul``, ``and``: a, b and their product; ``bit``: a bit r, shared by xor and by sum;
        ``truncation``: R, R >> shift and R's highest bit times 2^(64 - shift), each shared by sum.
    first, second, result : tuple of int
        Shapes of a, b and their product; the first one alone counts where there is one shape.
    layer : ConvolutionLayer, optional
        Of a ``conv2d``.
    shift : int
        Of a ``truncation``.
    """

    number: int
    kind: Kind
    first: Shape
    second: Shape
    result: Shape
    layer: ConvolutionLayer | None = None
    shift: int = 0

    @property
    def corrections(self) -> int:
        """Length of what the dealer sends to party 1, bytes."""
        return prod(self.result) * RING.width * (2 if self.kind == "truncation" else 1)


def require_one_scale(plan: Plan) -> None:
    """Check that every product has the scale of an input times a weight, to which this engine keeps all tensors.

    Raises
    ------
    ConfigError
        One has another (``program-scales``).
    """
    wide = plan.program.fraction_bits + plan.program.weight_fraction_bits
    if any(plan.fractions[name] != wide for name in plan.weighted):
        raise ConfigError("the engine crypten needs a program of one scale", code="program-scales")


def requests_of(program: Program) -> list[Request]:
    """List what a program takes, in the order in which CrypTen asks for it."""
    found: list[Request] = []
    shapes = shapes_of(program)

    def add(
        kind: Kind, first: Shape, second: Shape | None = None, result: Shape | None = None, *,
        layer: ConvolutionLayer | None = None, shift: int = 0,
    ) -> None:  # fmt: skip
        found.append(Request(len(found), kind, first, second or first, result or first, layer, shift))

    for layer in program.layers:
        shape = (1, *shapes[layer.name])
        if isinstance(layer, ConvolutionLayer):
            given = shapes[layer.source]
            add("conv2d", (1, *given), weight_shape(layer, given), shape, layer=layer)
        elif isinstance(layer, DenseLayer):
            inner = shapes[layer.source][0]
            add("matmul", (1, inner), (inner, layer.out_features), (1, layer.out_features))
        elif isinstance(layer, ReluLayer):
            for _ in range(1 if layer.ceiling is None else 2):
                add("and", (1, *shape))
                for _ in range(LEVELS):
                    add("and", (2, 1, *shape))
                add("bit", shape)
                add("mul", shape)
        if isinstance(layer, ConvolutionLayer | DenseLayer):
            add("truncation", shape, shift=program.weight_fraction_bits)
    return found


def expand(request: Request, prg: Prg, *, corrected: bool) -> list[Words]:
    """Expand one party's half from its seed.

    Parameters
    ----------
    corrected : bool
        Whether what the dealer corrects is left out: true for party 1.

    Returns
    -------
    list of ndarray of uint64
        a, b, product; or the bit by xor and by sum; or R, R >> shift and its highest bit.
    """
    number, kind = request.number, request.kind
    if kind == "bit":
        bits = prg.stream(Label.TUPLE_FIRST, number, prod(request.first)) & 1
        found = [bits.astype(np.uint64).reshape(request.first)]
    else:
        found = [prg.words(Label.TUPLE_FIRST, number, request.first, RING)]
    if kind not in ("bit", "truncation") or (kind == "truncation" and not corrected):
        found.append(prg.words(Label.TUPLE_SECOND, number, request.second, RING))
    if not corrected:
        found.append(prg.words(Label.TUPLE_RESULT, number, request.result, RING))
    return found


def _product(request: Request, a: Words, b: Words) -> Words:
    if request.layer is not None:
        return weigh(request.layer, a[0], b)[None]
    if request.kind == "matmul":
        return a @ b
    return a & b if request.kind == "and" else a * b


def corrections(request: Request, hospital: Prg, party: Prg) -> list[Words]:
    """Compute what party 1's half must hold so that both fit."""
    ours = expand(request, hospital, corrected=False)
    theirs = expand(request, party, corrected=True)
    if request.kind == "bit":
        return [(ours[0] ^ theirs[0]) - ours[1]]
    if request.kind == "truncation":
        mask = ours[0] + theirs[0]
        shifted = mask >> np.uint64(request.shift)
        highest = (mask >> np.uint64(RING.bits - 1)) << np.uint64(RING.bits - request.shift)
        return [shifted - ours[1], highest - ours[2]]
    if request.kind == "and":
        return [_product(request, ours[0] ^ theirs[0], ours[1] ^ theirs[1]) ^ ours[2]]
    return [_product(request, ours[0] + theirs[0], ours[1] + theirs[1]) - ours[2]]


def half(request: Request, prg: Prg, corrected: Vector | None) -> list[Words]:
    """Put one party's half together.

    Parameters
    ----------
    corrected : bytes, optional
        What the dealer sent to party 1; None at the hospital, whose half is the seed's alone.

    Raises
    ------
    ProtocolError
        The corrections are of the wrong size (``wrong-size``).
    """
    if corrected is None:
        return expand(request, prg, corrected=False)
    shapes = [request.result] * (2 if request.kind == "truncation" else 1)
    return expand(request, prg, corrected=True) + RING.split(corrected, shapes)


def truncated(opened: Words, half: Sequence[Words], shift: int, *, first: bool) -> Words:
    """Shift a shared value to the right, given the opened m = value + R + 2^62; exact to one unit in the last place.

    The shift of m less that of R is off by 2^(64 - shift) where m wrapped. Then, and only then, the highest bit of R is
    set and that of m is not, as long as |value| < 2^62.

    Parameters
    ----------
    opened : ndarray of uint64
    half : sequence of ndarray of uint64
        This party's shares of R, of R >> shift, and of R's highest bit times 2^(64 - shift).
    first : bool
        Whether this is party 0, which adds what is public.
    """
    _, shifted, highest = half
    found = highest * (1 - (opened >> np.uint64(RING.bits - 1))) - shifted
    if first:
        found += (opened >> np.uint64(shift)) - np.uint64(OFFSET >> shift)
    return found


def encoded_corrections(program: Program, hospital: Prg, party: Prg) -> Iterator[tuple[int, Vector]]:
    """Make party 1's corrections one after the other: each request's number and bytes."""
    for request in requests_of(program):
        yield request.number, RING.to_bytes(corrections(request, hospital, party))
