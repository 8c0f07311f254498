"""The bench of attacks gives each figure and picture that it promises, on films too few to say anything."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from tests.bench import attacks
from tests.bench.attack_page import page


def test_a_small_campaign_has_all_figures_and_a_page_that_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(attacks, "DATA", tmp_path)  # no films there: phantoms are drawn
    monkeypatch.setattr(attacks, "noise_for", lambda claim, delta, mechanism: mechanism)  # a search of seconds
    effort = attacks.Effort({1.0: 100}, side=16, steps=4, targets=4, gallery=5)
    found, rows = attacks.inversions(effort)
    assert attacks.heads(effort, tmp_path) == {}
    found |= attacks.audits(effort)
    assert all(math.isfinite(value) for value in found.values())
    assert found["real_films"] == 0
    assert found["inversion_plain_first_layer_rank"] == 1
    for kind in ("descent", "lottery", "head", "sums"):
        assert found[f"audit_{kind}_eps1_claimed"] == pytest.approx(1.0, rel=0.01)
        assert found[f"audit_{kind}_eps1_lower"] < found[f"audit_{kind}_eps1_lower_noise_off"]
    written = page(found, rows)
    assert len(re.findall("data:image/png;base64,", written)) == 4 * 11
    assert not re.search(r"https?://|<script|<link", written)
