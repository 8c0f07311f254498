"""What quarters of an image add to a head's logits, and what is released of it."""

from __future__ import annotations

import numpy as np

from fl_agent import calibration, head
from fl_agent.accounting import epsilon
from fl_agent.features import pooled
from fl_agent.randomness import SecureSource
from fl_agent.trainset import Films
from secure_infer.network import Trunk
from secure_infer.regions import shares


def test_quarters_are_what_the_map_of_evidence_has_more_in_them_than_elsewhere() -> None:
    trunk, rng = Trunk(("block7", "block13"), regions=2), np.random.default_rng(2)
    image = rng.uniform(0, 1, (224, 224)).astype(np.float32)
    matrix = rng.normal(size=(3, trunk.channels))
    found = head.of_quarters(pooled(trunk, image, ("plain",)), matrix, trunk)[0]
    # By hand: each quarter's channels alone, at all positions.
    owner = np.concatenate([np.repeat(np.arange(4), width) for width in (80, 192)])
    seen = trunk.features(image)
    alone = [np.tensordot(matrix[:, owner == one], seen[owner == one], 1) for one in range(4)]
    own = np.array([one.sum((1, 2)) / share.sum() for one, share in zip(alone, shares(2, 7), strict=True)])
    np.testing.assert_allclose(found, own - own.mean(0), atol=1e-5)


def calibrated(patients: int, quarters: np.ndarray) -> calibration.Calibrated:
    labels, rng = np.arange(patients) % 3, np.random.default_rng(1)
    films = Films(("",) * patients, ("",) * patients, labels, np.arange(patients))
    logits = np.eye(3)[labels] * 3 + rng.normal(size=(patients, 3))
    given = quarters + rng.normal(size=(patients, 4, 3))
    return calibration.calibrate(logits, films, (3.0, 1e-4), SecureSource(), lambda *_: None, given)


def test_what_quarters_give_is_released_with_noise_within_the_same_budget() -> None:
    usual = np.array([[5.0, 0, -5], [-5, 0, 5], [2, -2, 0], [-2, 2, 0]])
    found = calibrated(2000, usual)
    assert found.quarters is not None
    assert 0 < np.abs(found.quarters - usual).max() < 1.5  # a standard deviation of 0.15 for each number, and no less
    np.testing.assert_allclose(found.quarters.mean(0), 0, atol=1e-12)
    assert [one.name for one in found.mechanisms] == ["calibration", "undetermined share", "quarters"]
    assert 2.5 < epsilon(found.mechanisms, 1e-4) <= 3.0
    one = head.card_quarters(found.quarters)
    assert one is not None
    np.testing.assert_allclose(one, found.quarters, atol=1e-4)


def test_of_few_patients_nothing_is_said_that_noise_would_drown() -> None:
    found = calibrated(60, np.zeros((4, 3)))
    assert found.quarters is None
    assert [one.name for one in found.mechanisms] == ["calibration", "undetermined share"]


def test_one_patient_moves_what_is_released_by_a_bounded_amount() -> None:
    films = Films(("",) * 400, ("",) * 400, np.arange(400) % 3, np.arange(400))
    logits, wild = np.eye(3)[np.arange(400) % 3] * 3.0, np.zeros((400, 4, 3))
    wild[7] = 1e9
    wild[7, 0] = -1e9
    found = calibration.calibrate(logits, films, (3.0, 1e-4), SecureSource(), lambda *_: None, wild)
    assert found.quarters is not None
    assert np.abs(found.quarters).max() < 8 * calibration.QUARTERS_NORM * calibration.QUARTERS_NOISE / 400
