"""Trunks that tests name; the smallest checkpoint, images of 224, all positions alike where nothing is said."""

from __future__ import annotations

from secure_infer.card import Regions, Side, TrunkSetup


def setup(*taps: str, side: Side = 224, regions: Regions = 1) -> TrunkSetup:
    return TrunkSetup(name="efficientnet-lite0", taps=taps, side=side, regions=regions)
