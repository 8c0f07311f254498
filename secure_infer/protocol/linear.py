"""A private matrix on secret-shared columns: W·a for W at party 1, with one product online and none at party 0.

With r, k0 known to dealer and party 0, and b known to dealer and party 1 (after Beaver 1991 and the client-server
preprocessing of Gazelle/Delphi, here from a dealer)::

    deal       dealer     c  = b·r - k0                 to party 1, for each query
    blind      party 1    Δ  = W - b                    to party 0, once
    offline    party 0    y0 = Δ·r + k0
    mask       party 0    d  = a0 - r                   to party 1
    online     party 1    y1 = W·(d + a1) + c + bias    so that y0 + y1 = W·(a0 + a1) + bias

All arrays hold ring elements and all arithmetic is modulo 2^bits, hence exact. Shapes: W, b, Δ (out, in); r, a, d
(in, columns); k0, c, y (out, columns).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..card import LinearLayer
from .messages import Label
from .prg import Prg
from .ring import Ring, Words


@dataclass(frozen=True)
class Shapes:
    """What one layer's arrays measure."""

    weight: tuple[int, int]
    input: tuple[int, int]
    output: tuple[int, int]

    @classmethod
    def of(cls, layer: LinearLayer) -> Shapes:
        """Read them off the public program."""
        return cls(
            (layer.out_features, layer.in_features),
            (layer.in_features, layer.columns),
            (layer.out_features, layer.columns),
        )


@dataclass(frozen=True)
class Prepared:
    """What party 0 keeps from the offline phase: the mask of the input and its share of the output."""

    mask: Words
    share: Words


def deal(number: int, shapes: Shapes, ring: Ring, bundle: Prg, weights: Prg) -> Words:
    """Compute, at the dealer, the correction c of layer `number`."""
    r = bundle.words(Label.INPUT_MASK, number, shapes.input, ring)
    k0 = bundle.words(Label.OUTPUT_MASK, number, shapes.output, ring)
    return weights.words(Label.WEIGHT_MASK, number, shapes.weight, ring) @ r - k0


def blind(number: int, weight: Words, ring: Ring, weights: Prg) -> Words:
    """Compute, at party 1, the blinded weights Δ."""
    return weight - weights.words(Label.WEIGHT_MASK, number, weight.shape, ring)


def offline(number: int, shapes: Shapes, ring: Ring, bundle: Prg, delta: Words) -> Prepared:
    """Compute, at party 0, the input's mask and the output's share."""
    r = bundle.words(Label.INPUT_MASK, number, shapes.input, ring)
    return Prepared(r, delta @ r + bundle.words(Label.OUTPUT_MASK, number, shapes.output, ring))


def mask(prepared: Prepared, share: Words) -> Words:
    """Compute, at party 0, the masked input d."""
    return share - prepared.mask


def online(weight: Words, bias: Words, correction: Words, masked: Words, share: Words | None) -> Words:
    """Compute, at party 1, its share of the output.

    Parameters
    ----------
    share : Words or None
        Party 1's share of the input; None for the program's input, of which it has none.
    """
    return weight @ (masked if share is None else masked + share) + correction + bias[:, None]
