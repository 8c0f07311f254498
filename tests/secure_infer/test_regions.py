"""Quarters share what lies on their borders, and a map of evidence compares each with itself in a usual image."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from secure_infer.card import ModelCard
from secure_infer.regions import shares
from tests.secure_infer.small_model import card_of, head


def test_every_position_belongs_to_somebody_and_borders_to_both_sides() -> None:
    np.testing.assert_array_equal(shares(1, 7), np.ones((1, 7, 7)))
    quarters = shares(2, 7)
    np.testing.assert_allclose(quarters.sum(0), 1.0)
    np.testing.assert_allclose(quarters.sum((1, 2)), 3.5**2)
    assert quarters[0, 0].tolist() == [1, 1, 1, 0.5, 0, 0, 0]
    assert quarters[:, 3, 3].tolist() == [0.25] * 4
    assert (quarters[1, 0, 6], quarters[2, 6, 0], quarters[3, 6, 6]) == (1, 1, 1)


def card(**changes: object) -> ModelCard:
    written = card_of(head(4, 3), b"").model_dump(mode="json")
    written["calibration"] |= {"quarters": [[1, 0, -1], [3, 0, 0], [-2, 0, 0.5], [-2, 0, 0.5]]}
    written["trunk"] |= {"regions": 2, **changes}
    return ModelCard.model_validate(written)


def test_what_quarters_show_in_every_image_is_taken_from_the_map() -> None:
    made = card()
    usual = np.tensordot(shares(2, 7), np.array(made.calibration.quarters), (0, 0))
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(7, 7, 3))
    plain = made.model_copy(update={"calibration": made.calibration.model_copy(update={"quarters": None})})
    np.testing.assert_allclose(made.pneumonia_evidence(evidence + usual), plain.pneumonia_evidence(evidence))
    # Of all positions together nothing is taken: the answer and its map speak of the same logits.
    np.testing.assert_allclose(usual.mean((0, 1)), 0.0, atol=1e-12)


def test_a_head_without_weights_for_quarters_has_none_to_compare() -> None:
    with pytest.raises(ValidationError, match="quarters to compare"):
        card(regions=None)
