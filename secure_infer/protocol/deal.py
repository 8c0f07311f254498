"""The dealer's part of a bundle: party 1's material, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from ..program import INPUT, Gated, sources, weight_shape
from .layers import local, weigh
from .messages import Label, Material
from .plan import Plan
from .prg import Prg, gate_masks, private_masks, weight_masks
from .ring import Words, packed


def masks_of(plan: Plan, name: str, bundle: Prg) -> Words:
    """Expand r, party 0's share of the input or of a gate's result."""
    return bundle.words(Label.INPUT_MASK, plan.numbers[name], plan.shapes[name], plan.ring)


def materials(
    plan: Plan, name: bytes, bundle: Prg, weight_mask_seed: bytes, *, private_seed: bytes
) -> Iterator[Material]:
    """Make party 1's material of the bundle `name`: c = b∘r - k0 for each layer with weights, tables for each gate."""
    weights, party = weight_masks(weight_mask_seed), gate_masks(weight_mask_seed, name)
    private = private_masks(private_seed)
    shares = {INPUT: masks_of(plan, INPUT, bundle)}  # party 0's, as far as the dealer can know them
    for layer in plan.program.layers:
        number, given = plan.numbers[layer.name], sources(layer)
        if layer.name in plan.weighted:
            weighted = plan.weighted[layer.name]
            shape = weight_shape(weighted, plan.shapes[given[0]])
            b = weights.words(Label.WEIGHT_MASK, number, shape, plan.ring)
            k0 = bundle.words(Label.OUTPUT_MASK, number, plan.shapes[layer.name], plan.ring)
            found = weigh(weighted, shares[given[0]], b) - k0
            yield Material(name, number, plan.ring.to_bytes([found]))
        elif isinstance(layer, Gated):
            block = plan.gates[layer.name].deal(number, bundle, party, private)
            shares[layer.name] = masks_of(plan, layer.name, bundle)
            yield Material(name, number, packed(block))
        elif all(one in shares for one in given):
            shares[layer.name] = local(layer, [shares[one] for one in given])
