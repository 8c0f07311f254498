"""The engine port: what goes in, what comes out, and what is refused before anything is sent."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.core.errors import ConfigError, Refused
from secure_infer.clear import PlaintextEngine
from secure_infer.engine import inference_of, input_of
from tests.secure_infer.small_model import head, weights_of

MAP = head(5, 3, side=7)
POOLED = head(5, 3, side=1)


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(5, 7, 7))


def test_logits_are_the_mean_of_the_evidence_of_all_positions():
    weights = weights_of(MAP)
    found = PlaintextEngine(MAP, weights).infer(features())
    assert found.logits.shape == (3,)
    assert found.evidence is not None
    assert found.evidence.shape == (7, 7, 3)
    np.testing.assert_allclose(found.evidence.mean(axis=(0, 1)), found.logits)
    at = features()[:, 2, 5]
    np.testing.assert_allclose(found.evidence[2, 5], weights["head.weight"][:, :, 0, 0] @ at + weights["head.bias"])


def test_a_program_of_one_position_gives_the_same_logits_and_no_map():
    whole = PlaintextEngine(MAP, weights_of(MAP)).infer(features())
    pooled = PlaintextEngine(POOLED, weights_of(POOLED)).infer(features())
    assert pooled.evidence is None
    np.testing.assert_allclose(pooled.logits, whole.logits)


def test_a_map_need_not_be_square():
    found = inference_of(np.arange(6.0).reshape(1, 2, 3))
    assert found.evidence is not None
    assert found.evidence[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.logits.tolist() == [2.5]


@pytest.mark.parametrize("value", [np.nan, np.inf, 16.1, -16.1])
def test_a_feature_that_is_no_number_or_out_of_bounds_is_refused(value):
    given = features()
    given[2, 3, 1] = value
    for made in (MAP, POOLED):
        with pytest.raises(Refused) as caught:
            input_of(made, given)
        assert caught.value.code == "features-out-of-range"


@pytest.mark.parametrize("shape", [(5, 7, 6), (6, 7, 7), (5, 49), (5,), (1, 5, 7, 7)])
def test_features_of_another_shape_are_a_mistake_of_the_card(shape):
    with pytest.raises(ConfigError) as caught:
        input_of(MAP, np.zeros(shape))
    assert caught.value.code == "program-shape"


@pytest.mark.parametrize("shape", [(4, 7, 7), (5, 49), (5,)])
def test_features_that_cannot_be_pooled_are_a_mistake_of_the_card(shape):
    with pytest.raises(ConfigError):
        input_of(POOLED, np.zeros(shape))


def test_no_features_at_all_are_refused():
    with pytest.raises(Refused):
        input_of(POOLED, np.zeros((5, 0, 0)))
