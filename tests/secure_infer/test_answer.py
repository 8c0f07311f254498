"""Answers follow the card's calibration and operating point."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_infer.answer import Answer
from secure_infer.card import Calibration, ModelCard, OperatingPoint
from tests.secure_infer.small_model import card_of, head


def card(scale: float = 1.0, offsets: tuple[float, float, float] = (0, 0, 0)) -> ModelCard:
    point = OperatingPoint(absent_below=0.3, present_from=0.6, undetermined_share=0.1)
    calibration = Calibration(scale=scale, offsets=offsets, method="none")
    return card_of(head(4, 3), b"").model_copy(update={"operating_point": point, "calibration": calibration})


def logits(pneumonia: float) -> np.ndarray:
    """Logits whose softmax gives this probability of pneumonia, three quarters of it bacterial."""
    return np.log([1 - pneumonia, 0.75 * pneumonia, 0.25 * pneumonia])


@pytest.mark.parametrize(
    ("pneumonia", "answer"),
    [
        (0.01, "absent"),
        (0.2999, "absent"),
        (0.3001, "undetermined"),
        (0.5999, "undetermined"),
        (0.6001, "present"),
        (0.999, "present"),
    ],
)
def test_the_operating_point_decides(pneumonia: float, answer: str) -> None:
    found = Answer.from_logits(logits(pneumonia), card())
    assert found.answer == answer
    assert found.pneumonia == pytest.approx(pneumonia)
    assert found.bacterial == pytest.approx(0.75 * pneumonia)
    assert found.viral == pytest.approx(0.25 * pneumonia)


def test_the_limits_themselves_belong_to_the_answer_above() -> None:
    even = card().model_copy(
        update={"operating_point": OperatingPoint(absent_below=0.5, present_from=0.5, undetermined_share=0)}
    )
    exactly_half = np.array([0.0, math.log(0.5), math.log(0.5)])
    assert Answer.from_logits(exactly_half, even).answer == "present"


def test_logits_are_scaled_and_shifted_before_the_softmax() -> None:
    found = Answer.from_logits(np.array([2.0, 0.0, -4.0]), card(0.5, (-1.0, 0.25, 1.0)))
    weights = [math.exp(0.0), math.exp(0.25), math.exp(-1.0)]
    assert found.bacterial == pytest.approx(weights[1] / sum(weights))
    assert found.viral == pytest.approx(weights[2] / sum(weights))


@given(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3))
def test_probabilities_are_probabilities_however_large_the_logits(values: list[float]) -> None:
    found = Answer.from_logits(np.array(values), card())
    assert 0.0 <= found.bacterial <= found.pneumonia <= 1.0
    assert 0.0 <= found.viral <= found.pneumonia


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 0.0, float("nan")], [0.0, float("inf"), 0.0]])
def test_logits_that_are_no_numbers_get_no_answer(values: list[float]) -> None:
    with pytest.raises(ValueError, match="three finite logits"):
        Answer.from_logits(np.array(values), card())


def test_evidence_is_the_log_odds_of_pneumonia_at_each_position() -> None:
    made = card(0.7, (0.3, -0.1, -0.2))
    evidence = np.random.default_rng(0).normal(size=(7, 7, 3)) * 5
    found = made.pneumonia_evidence(evidence)
    for row in range(7):
        for column in range(7):
            one = Answer.from_logits(evidence[row, column], made)
            assert found[row, column] == pytest.approx(math.log(one.pneumonia / (1 - one.pneumonia)), rel=1e-6)


def test_the_operating_point_reads_as_words() -> None:
    assert str(card().operating_point) == "absent below 0.30, present from 0.60 (probability of pneumonia)"
