"""The dealer's part of a bundle: party 1's material, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from ..program import INPUT, Gated, sources, weight_shape
from .layers import local, weigh
from .messages import Label, Vector
from .plan import Plan
from .prg import Context, Prg, bundle_masks, gate_masks, private_masks, weight_masks
from .ring import Words, packed


def masks_of(plan: Plan, name: str, bundle: Prg) -> Words:
    """Expand r, party 0's share of the input or of a gate's result."""
    return bundle.words(Label.INPUT_MASK, plan.numbers[name], plan.shapes[name], plan.ring)


def materials(plan: Plan, seed: bytes, context: Context, weight_mask_seed: bytes) -> Iterator[Vector]:
    """Make party 1's material of a bundle: c = b∘r - k0 for each layer with weights, tables for each gate.

    The dealer calls it to deal, party 1 to audit: it depends on nothing but the two seeds and public values.
    """
    bundle, weights = bundle_masks(seed, context), weight_masks(weight_mask_seed)
    party, private = gate_masks(weight_mask_seed, context.bundle), private_masks(seed, weight_mask_seed)
    shares = {INPUT: masks_of(plan, INPUT, bundle)}  # party 0's, as far as the dealer can know them
    for layer in plan.program.layers:
        number, given = plan.numbers[layer.name], sources(layer)
        if layer.name in plan.weighted:
            weighted = plan.weighted[layer.name]
            shape = weight_shape(weighted, plan.shapes[given[0]])
            b = weights.words(Label.WEIGHT_MASK, number, shape, plan.ring)
            k0 = bundle.words(Label.OUTPUT_MASK, number, plan.shapes[layer.name], plan.ring)
            yield plan.ring.to_bytes([weigh(weighted, shares[given[0]], b) - k0])
        elif isinstance(layer, Gated):
            block = plan.gates[layer.name].deal(number, bundle, party, private)
            shares[layer.name] = masks_of(plan, layer.name, bundle)
            yield packed(block)
        elif all(one in shares for one in given):
            shares[layer.name] = local(layer, [shares[one] for one in given])
