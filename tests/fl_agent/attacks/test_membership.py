"""Who was in the training set: told of a head that learned without privacy, and not of one that learned with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.fl_agent.attacks.membership import attack, plain, private, ratios, sureness

PATIENTS, SHADOWS, DELTA = 240, 10, 1e-3


@pytest.fixture(scope="module")
def patients() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """More features than patients, as a trunk gives, and labels that are partly wrong, as they are."""
    torch.set_num_threads(1)
    random = np.random.default_rng(8)
    truth = np.arange(PATIENTS) % 3
    features = random.normal(size=(PATIENTS, 300)) + 2.0 * np.eye(3, 300)[truth]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.where(random.random(PATIENTS) < 0.2, random.integers(0, 3, PATIENTS), truth)
    return features.astype(np.float32), labels.astype(np.int64)


def test_members_are_told_of_a_plain_head_and_not_of_a_private_one(
    patients: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    exposed = attack(*patients, plain(), SHADOWS, DELTA)
    assert exposed.auc > 0.85
    assert exposed.caught > 0.1
    assert exposed.epsilon > 1.0
    kept = attack(*patients, private(1.0, DELTA), SHADOWS, DELTA)
    # 240 patients by chance: one standard deviation of the area is below 0.04.
    assert kept.auc < 0.66
    assert kept.epsilon < 1.0


def test_a_ratio_is_above_zero_where_being_inside_explains_more() -> None:
    inside = np.array([[True], [True], [False], [False]])
    shadows = np.array([[3.0], [5.0], [-1.0], [1.0]])
    assert ratios(np.array([4.0]), shadows, inside)[0] > 0
    assert ratios(np.array([0.0]), shadows, inside)[0] < 0
    assert ratios(np.array([2.0]), shadows, inside)[0] == pytest.approx(0.0)


def test_sureness_is_the_log_odds_of_the_right_class() -> None:
    weights = {"head.weight": np.array([[1.0], [0.0], [2.0]]), "head.bias": np.array([0.0, 1.0, 0.0])}
    (found,) = sureness(weights, np.array([[1.0]], dtype=np.float32), np.array([2]))
    share = np.exp([1.0, 1.0, 2.0])
    assert found == pytest.approx(np.log(share[2] / (share[0] + share[1])))
