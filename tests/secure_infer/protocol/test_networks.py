"""Whole networks of random shapes equal integer arithmetic, and nothing leaves the ring unseen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError, Refused
from secure_infer.clear import evaluate
from secure_infer.program import INPUT, ConvolutionLayer, DenseLayer, ReluLayer
from secure_infer.protocol.party1 import PrivateModel
from secure_infer.protocol.plan import Plan
from tests.secure_infer.integer_reference import exact
from tests.secure_infer.small_model import weights_of
from tests.secure_infer.small_network import MODEL, Builder, Trio, every_kind, network

#: Weights of `every_kind` between its guarded gates.
GUARDED = ("stem.weight", "depth.weight", "half.weight", "project.weight")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from([64, 32]), st.integers(0, 2**32 - 1))
def test_a_random_network_gives_exactly_the_integer_result(data, bits, seed):
    made = Builder(lambda low, high: data.draw(st.integers(low, high)), bits).make()
    weights = weights_of(made, seed)
    image = np.random.default_rng(seed).uniform(-1, 1, made.input_shape)
    trio = Trio(made, weights)
    opened = trio.ask(image)
    assert (opened == exact(made, weights, image, trio.gate_masks())).all()


def test_a_network_of_every_kind_of_layer_gives_the_integer_result_and_nearly_the_float_result():
    made = every_kind()
    weights = weights_of(made)
    image = np.random.default_rng(3).uniform(-4, 4, made.input_shape)
    trio = Trio(made, weights)
    for _ in range(3):
        opened = trio.ask(image)
        assert (opened == exact(made, weights, image, trio.gate_masks())).all()
        assert np.abs(opened.reshape(-1) - evaluate(made, weights, image)["head"].numpy().reshape(-1)).max() < 1e-3


def test_the_guard_refuses_an_image_whose_sums_exceed_their_limits_and_no_other():
    made = every_kind(limit=200.0)
    image = np.full(made.input_shape, 4.0)
    weights = weights_of(made)
    weights = {name: value * (16 if name in GUARDED else 1) for name, value in weights.items()}
    assert (evaluate(made, weights, image)["sums"].numpy() > 1024).any()  # what the guard resolves
    with pytest.raises(Refused) as caught:
        Trio(made, weights).ask(image)
    assert caught.value.code == "features-out-of-range"
    assert (evaluate(made, weights, image / 1000)["sums"].numpy() < 0).all()
    Trio(made, weights).ask(image / 1000)


def deep(limit: float | None) -> tuple:
    made = every_kind(limit=limit or 1.0)
    if limit is None:
        made = made.model_copy(update={"guard": None, "layers": made.layers[:-2]})
    return made, {name: value * (300 if name in GUARDED else 1) for name, value in weights_of(made).items()}


def test_a_network_whose_values_could_leave_the_ring_is_served_behind_a_guard_alone():
    for limit in (None, 1e9):
        made, weights = deep(limit)
        with pytest.raises(ConfigError) as caught:
            PrivateModel.of("1", MODEL, Plan(made), weights)
        assert caught.value.code == "ring-overflow"
    made, weights = deep(100.0)
    PrivateModel.of("1", MODEL, Plan(made), weights)


def test_weights_behind_no_gate_are_refused():
    layers = [
        ConvolutionLayer(name="one", source=INPUT, out_channels=2, kernel=(1, 1)),
        ConvolutionLayer(name="two", source="one", out_channels=2, kernel=(1, 1)),
    ]
    with pytest.raises(ConfigError) as caught:
        Plan(network(layers))
    assert caught.value.code == "program-shape"


@pytest.mark.parametrize(
    "layers",
    [
        [DenseLayer(name="a", source="input", out_features=3)],
        [ConvolutionLayer(name="a", source="b", out_channels=3, kernel=(1, 1))],
        [ConvolutionLayer(name="a", source="input", out_channels=3, kernel=(9, 9))],
        [ConvolutionLayer(name="a", source="input", out_channels=3, kernel=(1, 1), groups=2)],
        [ReluLayer(name="a", source="input", shift=26), ReluLayer(name="a", source="input", shift=26)],
    ],
)
def test_layers_that_do_not_fit_each_other_are_no_program(layers):
    with pytest.raises(ValueError, match=r"layer a|two tensors|needs|kernel|groups|takes"):
        network(layers)
