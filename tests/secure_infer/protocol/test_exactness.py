"""A linear head's opened output equals integer arithmetic to the last bit, and what cannot fit the ring is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError, IntegrityError, ProtocolError
from secure_infer.clear import PlaintextEngine
from secure_infer.protocol.party1 import PrivateModel
from secure_infer.protocol.plan import Plan
from secure_infer.protocol.ring import Ring
from tests.secure_infer.integer_reference import exact
from tests.secure_infer.small_model import head, weights_of
from tests.secure_infer.small_network import MODEL, Trio


@settings(max_examples=150, deadline=None)
@given(
    channels=st.integers(1, 7),
    classes=st.integers(1, 7),
    side=st.integers(1, 3),
    ring=st.sampled_from([(64, 12), (64, 16), (64, 20), (32, 7)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_opened_output_is_exactly_the_integer_result(channels, classes, side, ring, seed):
    bits, fraction = ring
    made = head(channels, classes, side, bits=bits, fraction=fraction, bound=2.0, output=500.0)
    weights = weights_of(made, seed)
    values = np.random.default_rng(seed).uniform(-2, 2, made.input_shape)
    assert (Trio(made, weights).ask(values) == exact(made, weights, values, {})).all()


@pytest.mark.parametrize("extreme", [16.0, -16.0])
def test_the_largest_features_do_not_wrap(extreme):
    made = head(1280, 3, 7, fraction=20, output=4096.0)
    weights = {"head.weight": np.full((3, 1280, 1, 1), 0.19), "head.bias": np.full(3, -1.0)}
    opened = Trio(made, weights).ask(np.full(made.input_shape, extreme))
    assert np.abs(opened - (0.19 * 1280 * extreme - 1)).max() < 0.02


def test_logits_stay_within_one_ten_thousandth_of_float_on_a_head_of_1280_features():
    made = head(1280, 3, 7, fraction=20)
    weights = weights_of(made, scale=4.0)
    values = np.abs(np.random.default_rng(5).normal(size=made.input_shape))
    reference = PlaintextEngine(made, weights).infer(values).logits
    assert np.abs(Trio(made, weights).ask(values).mean(axis=(1, 2)) - reference).max() < 1e-4


def test_weights_with_which_some_input_could_wrap_are_refused():
    made = head(1280, 3, 1, bits=32, fraction=12, output=60.0)
    with pytest.raises(ConfigError) as caught:
        PrivateModel.of("1", MODEL, Plan(made), weights_of(made, scale=36.0))
    assert caught.value.code == "ring-overflow"


def test_a_program_whose_results_outgrow_the_ring_is_refused():
    assert Plan(head(6, 3, bits=32, fraction=10, output=1023.0))
    for made in (head(6, 3, bits=32, fraction=10, output=1024.0), head(6, 3, fraction=30)):
        with pytest.raises(ConfigError) as caught:
            Plan(made)
        assert caught.value.code == "ring-overflow"


@pytest.mark.parametrize("value", [2.0**47, -(2.0**47), np.nan, np.inf])
def test_a_value_that_does_not_fit_the_ring_is_refused_and_not_wrapped(value):
    with pytest.raises(ConfigError):
        Ring(64).encode(np.array([value]), 16)


@pytest.mark.parametrize("off_by", [-8, -1, 1, 8])
def test_an_array_of_the_wrong_size_is_refused(off_by):
    with pytest.raises(ProtocolError) as caught:
        Ring(64).from_bytes(bytes(64 + off_by), (2, 4))
    assert caught.value.code == "wrong-size"


def test_an_output_beyond_the_models_bound_is_refused_for_good():
    made = head(3, 3, output=100.0)
    hospital, party = Trio(made, weights_of(made)).prepare()
    answer = party.handle(hospital.query(np.zeros(made.input_shape)))
    shifted = (np.frombuffer(answer.values, "<u8") + np.uint64(200 << 32)).tobytes()
    with pytest.raises(IntegrityError) as caught:
        hospital.handle(dataclasses.replace(answer, values=shifted))
    assert caught.value.code == "output-out-of-range"
    assert not caught.value.retryable
