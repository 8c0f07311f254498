"""Metrics against their definitions, intervals against known spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_agent.figures import auc, bootstrap, pneumonia_metrics

SCORED = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30)


@given(SCORED)
def test_auc_is_the_share_of_pairs_that_are_in_order(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive, times = (np.array(column) for column in zip(*rows, strict=True))
    won = total = 0.0
    for a, ill, p in rows:
        for b, other, q in rows:
            if ill and not other:
                total += p * q
                won += p * q * (1.0 if a > b else 0.5 if a == b else 0.0)
    found = auc(scores.astype(float), positive, times.astype(float))
    assert np.isnan(found) if total == 0 else found == pytest.approx(won / total)


def test_an_interval_draws_patients_and_not_images() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=100), 9)  # nine equal images of each of a hundred patients
    patients = np.repeat(np.arange(100), 9)

    def mean(weights: np.ndarray) -> float:
        return float((values * weights).sum() / weights.sum())

    found = bootstrap(mean, patients)
    spread = 2 * 1.96 * values.std() / np.sqrt(100)
    assert found.high - found.low == pytest.approx(spread, rel=0.1)
    assert found.low < found.value < found.high
    assert found == bootstrap(mean, patients)


def test_the_cards_figures_follow_their_definitions() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.array(
        [[0.9, 0.05, 0.05], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.3, 0.5, 0.2]]
    )
    ones = np.ones(6)
    found = {name: metric(ones) for name, metric in pneumonia_metrics(probabilities, labels).items()}
    assert found["auc_pneumonia"] == pytest.approx(7 / 8)
    assert found["auc_bacterial_viral"] == pytest.approx(1.0)
    assert found["accuracy_three_classes"] == pytest.approx(4 / 6)
    assert found["sensitivity_at_half"] == pytest.approx(3 / 4)
    assert found["specificity_at_half"] == pytest.approx(1 / 2)
