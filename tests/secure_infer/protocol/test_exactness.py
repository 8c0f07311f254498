"""The opened output equals integer arithmetic without masks, and what cannot fit the ring is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError, IntegrityError, ProtocolError
from secure_infer.protocol.messages import Output
from secure_infer.protocol.party1 import PrivateModel
from secure_infer.protocol.plan import Plan
from secure_infer.protocol.ring import Ring
from tests.secure_infer.small_model import MODEL, Trio, exact, program, random_weights


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    columns=st.integers(1, 9),
    ring=st.sampled_from([(64, 12), (64, 16), (64, 20), (32, 7)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_opened_output_is_exactly_the_integer_result(sizes, columns, ring, seed):
    bits, fraction = ring
    if (len(sizes) - 1) * fraction > bits - fraction - 14:
        sizes = sizes[:2]
    made = program(*sizes, columns=columns, bits=bits, fraction=fraction, bound=2.0, output=500.0)
    weights = random_weights(made, seed, scale=0.5)
    values = np.random.default_rng(seed).uniform(-2, 2, (sizes[0], columns))
    opened = Trio(made, weights).ask(values)
    assert (opened == exact(made, weights, values).astype(np.float64)).all()


@pytest.mark.parametrize("extreme", [16.0, -16.0])
def test_the_largest_features_do_not_wrap(extreme):
    made = program(1280, 3, columns=49, fraction=20, output=4096.0)
    weights = {"layer0.weight": np.full((3, 1280), 0.19), "layer0.bias": np.full(3, -1.0)}
    values = np.full((1280, 49), extreme)
    opened = Trio(made, weights).ask(values)
    assert np.abs(opened - (0.19 * 1280 * extreme - 1)).max() < 0.02


def test_logits_stay_within_one_ten_thousandth_of_float_on_a_head_of_1280_features():
    made = program(1280, 3, columns=49, fraction=20)
    weights = random_weights(made, scale=0.1)
    values = np.abs(np.random.default_rng(5).normal(size=(1280, 49)))
    reference = weights["layer0.weight"] @ values + weights["layer0.bias"][:, None]
    assert np.abs(Trio(made, weights).ask(values) - reference).mean(axis=1).max() < 1e-4


def test_weights_with_which_some_input_could_wrap_are_refused():
    made = program(1280, 3, columns=1, bits=32, fraction=12, output=60.0)
    with pytest.raises(ConfigError) as caught:
        PrivateModel.of("1", MODEL, Plan(made), random_weights(made))
    assert caught.value.code == "ring-overflow"


def test_a_chain_of_layers_whose_scale_outgrows_the_ring_is_refused():
    with pytest.raises(ConfigError) as caught:
        Plan(program(2, 2, 2, 2, fraction=16))
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
    trio = Trio(made := program(3, 3, output=100.0), random_weights(made))
    hospital, party = trio.prepare()
    (masked,) = hospital.query(np.zeros((3, 4)))
    answer = party.handle(masked)
    assert isinstance(answer, Output)
    shifted = (np.frombuffer(answer.values, "<u8") + np.uint64(200 << 32)).tobytes()
    with pytest.raises(IntegrityError) as caught:
        hospital.handle(Output(answer.bundle, shifted))
    assert caught.value.code == "output-out-of-range"
    assert not caught.value.retryable
