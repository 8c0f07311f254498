"""The engine port: what goes in, what comes out, and what is refused before anything is sent."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.core.errors import ConfigError, Refused
from secure_infer.engine import PlaintextEngine, columns_of, inference_of
from tests.secure_infer.small_model import program, random_weights

MAP = program(5, 3, columns=49)
POOLED = program(5, 3, columns=1)


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(49, 5))


def test_logits_are_the_mean_of_the_evidence_of_all_positions():
    weights = random_weights(MAP)
    found = PlaintextEngine(MAP, weights).infer(features())
    assert found.logits.shape == (3,)
    assert found.evidence is not None
    assert found.evidence.shape == (7, 7, 3)
    np.testing.assert_allclose(found.evidence.mean(axis=(0, 1)), found.logits)
    at = features()[7 * 2 + 5]
    np.testing.assert_allclose(found.evidence[2, 5], weights["layer0.weight"] @ at + weights["layer0.bias"])


def test_a_program_of_one_column_gives_the_same_logits_and_no_map():
    whole = PlaintextEngine(MAP, random_weights(MAP)).infer(features())
    pooled = PlaintextEngine(POOLED, random_weights(POOLED)).infer(features())
    assert pooled.evidence is None
    np.testing.assert_allclose(pooled.logits, whole.logits)


@pytest.mark.parametrize("value", [np.nan, np.inf, 16.1, -16.1])
def test_a_feature_that_is_no_number_or_out_of_bounds_is_refused(value):
    given = features()
    given[3, 2] = value
    for made in (MAP, POOLED):
        with pytest.raises(Refused) as caught:
            columns_of(made, given)
        assert caught.value.code == "features-out-of-range"


@pytest.mark.parametrize("shape", [(48, 5), (49, 6), (49,), (1, 49, 5)])
def test_features_of_another_shape_are_a_mistake_of_the_card(shape):
    with pytest.raises(ConfigError) as caught:
        columns_of(MAP, np.zeros(shape))
    assert caught.value.code == "program-shape"


def test_columns_that_make_no_square_map_are_a_mistake_of_the_card():
    with pytest.raises(ConfigError):
        inference_of(program(5, 3, columns=48), np.zeros((3, 48)))
