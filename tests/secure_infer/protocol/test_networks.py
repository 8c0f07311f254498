"""Whole networks of random shapes equal integer arithmetic, and nothing leaves the ring unseen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError, Refused
from secure_infer.bounds import narrowed, prove
from secure_infer.clear import evaluate
from secure_infer.program import INPUT, AdditionLayer, ConvolutionLayer, DenseLayer, Program, ReluLayer
from secure_infer.protocol.party1 import PrivateModel
from secure_infer.protocol.plan import Plan
from tests.secure_infer.integer_reference import exact
from tests.secure_infer.small_model import weights_of
from tests.secure_infer.small_network import FRACTIONS, MODEL, Builder, Trio, every_kind, network

#: Weights of `every_kind` between its guarded gates.
GUARDED = ("stem.weight", "depth.weight", "half.weight", "project.weight")


def narrowed_for(made: Program, weights: dict[str, np.ndarray]) -> Program:
    """What the compiler makes of a program: gates of as few bits as these weights allow, and some of fewer at all."""
    found = narrowed(Plan(made), prove(Plan(made), weights))
    gates = [layer for layer in found.layers if isinstance(layer, ReluLayer)]
    assert not gates or any(layer.bits for layer in gates)
    return found


def test_a_gate_of_one_digit_less_than_its_input_needs_is_refused():
    weights = weights_of(every_kind())
    made = narrowed_for(every_kind(), weights)
    prove(Plan(made), weights)
    for place, layer in enumerate(made.layers):
        if isinstance(layer, ReluLayer) and layer.bits is not None and layer.bits > layer.shift + 8:
            less = layer.model_copy(update={"bits": layer.bits - 6})
            with pytest.raises(ConfigError) as caught:
                prove(
                    Plan(made.model_copy(update={"layers": (*made.layers[:place], less, *made.layers[place + 1 :])})),
                    weights,
                )
            assert caught.value.code == "ring-overflow"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from([64, 32]), st.integers(0, 2**32 - 1), st.booleans())
def test_a_random_network_gives_exactly_the_integer_result(data, bits, seed, narrow):
    made = Builder(lambda low, high: data.draw(st.integers(low, high)), bits).make()
    weights = weights_of(made, seed)
    if narrow:
        made = narrowed_for(made, weights)
    image = np.random.default_rng(seed).uniform(-1, 1, made.input_shape)
    trio = Trio(made, weights)
    opened = trio.ask(image)
    assert (opened == exact(made, weights, image, trio.gate_masks())).all()


def test_what_reaches_a_narrow_gate_and_the_output_beside_it_is_right_in_the_whole_ring():
    shift = FRACTIONS[64][1]
    convolution = lambda name, source: ConvolutionLayer(name=name, source=source, out_channels=2, kernel=(1, 1))  # noqa: E731
    layers = [
        convolution("one", INPUT),
        ReluLayer(name="relu", source="one", shift=shift, bits=48),
        convolution("two", "relu"),
        ReluLayer(name="narrow", source="two", shift=shift, bits=52),
        AdditionLayer(name="sum", first="relu", second="narrow"),
        convolution("three", "sum"),
        AdditionLayer(name="both", first="three", second="one"),
    ]
    made = network(layers, shape=(2, 4, 4))
    weights = {name: value / 4 for name, value in weights_of(made).items()}
    image = np.random.default_rng(3).uniform(-4, 4, made.input_shape)
    trio = Trio(made, weights)
    assert (trio.ask(image) == exact(made, weights, image, trio.gate_masks())).all()


def test_gates_that_do_not_wait_for_each_other_take_their_turns_together():
    layers = [ConvolutionLayer(name=f"c{one}", source=INPUT, out_channels=2, kernel=(1, 1)) for one in "ab"]
    layers += [ReluLayer(name=f"r{one}", source=f"c{one}", shift=FRACTIONS[64][1]) for one in "ab"]
    made = network([*layers, AdditionLayer(name="sum", first="ra", second="rb")], shape=(3, 2, 2))
    weights = weights_of(made)
    trio = Trio(made, weights)
    assert trio.plan.rounds == [["ra", "rb"]]
    image = np.random.default_rng(3).uniform(-4, 4, made.input_shape)
    assert (trio.ask(image) == exact(made, weights, image, trio.gate_masks())).all()
    kinds = [type(one).__name__ for way, one in trio.transcript if way == "P1→P0"][-7:]
    assert kinds == ["Shifted", "Digits", "Shifted", "Digits", "Signs", "Signs", "Output"]


@pytest.mark.parametrize("narrow", [False, True])
def test_a_network_of_every_kind_of_layer_gives_the_integer_result_and_nearly_the_float_result(narrow):
    made = every_kind()
    weights = weights_of(made)
    if narrow:
        made = narrowed_for(made, weights)
    image = np.random.default_rng(3).uniform(-4, 4, made.input_shape)
    trio = Trio(made, weights)
    for _ in range(3):
        opened = trio.ask(image)
        assert (opened == exact(made, weights, image, trio.gate_masks())).all()
        assert np.abs(opened.reshape(-1) - evaluate(made, weights, image)["head"].numpy().reshape(-1)).max() < 1e-3


@pytest.mark.parametrize("narrow", [False, True])
def test_the_guard_refuses_an_image_whose_sums_exceed_their_limits_and_no_other(narrow):
    made = every_kind(limit=200.0)
    image = np.full(made.input_shape, 4.0)
    weights = weights_of(made)
    weights = {name: value * (16 if name in GUARDED else 1) for name, value in weights.items()}
    if narrow:
        made = narrowed_for(made, weights)
    assert (evaluate(made, weights, image)["sums"].numpy() > 1024).any()  # what the guard resolves
    with pytest.raises(Refused) as caught:
        Trio(made, weights).ask(image)
    assert caught.value.code == "features-out-of-range"
    assert (evaluate(made, weights, image / 1000)["sums"].numpy() < 0).all()
    Trio(made, weights).ask(image / 1000)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_no_value_sum_or_norm_of_a_random_network_exceeds_what_was_proven(data, seed, spiky, alike):
    made = Builder(lambda low, high: data.draw(st.integers(low, high)), 64).make()
    weights = weights_of(made, seed)
    if alike:  # nothing cancels: the bounds are reached
        weights = {name: np.abs(value) * name.endswith("weight") for name, value in weights.items()}
    random = np.random.default_rng(seed)
    image = (
        np.ones(made.input_shape) if alike else np.sign(random.normal(size=made.input_shape))
    )  # all values as large as may be, or one alone
    if spiky:
        image *= np.arange(image.size).reshape(image.shape) == random.integers(image.size)
    made = made.model_copy(update={"input_norm": float(np.linalg.norm(image))})
    proven = prove(Plan(made), weights)
    for name, value in evaluate(made, weights, image).items():
        values = np.abs(value.numpy())
        assert values.max() <= proven[name].largest
        assert values.sum() <= proven[name].total
        assert np.linalg.norm(values) <= proven[name].norm


def test_the_larger_of_two_tensors_is_proven_to_be_no_larger_than_both():
    made = every_kind()
    proven = prove(Plan(made), weights_of(made))
    assert proven["left"].largest < proven["largest"].largest < proven["left"].largest + 2**-15
    assert proven["relu6"].largest < 6 + 2**-15


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


def test_the_bounds_are_those_that_a_filter_of_ones_and_a_guarded_sum_reach():
    layer = ConvolutionLayer(name="ones", source=INPUT, out_channels=1, kernel=(3, 3), padding=(1, 1))
    made = network([layer], shape=(1, 9, 9)).model_copy(update={"input_norm": 9.0})
    weights = {"ones.weight": np.ones((1, 1, 3, 3)), "ones.bias": np.zeros(1)}
    proven = prove(Plan(made), weights)["ones"]
    reached = evaluate(made, weights, np.ones((1, 9, 9)))["ones"].norm()
    assert reached <= proven.norm < 1.2 * reached
    made, weights = deep(100.0)
    one = float(np.abs(weights["half.weight"]).max() * 1124)  # the limit, and the 1024 that the guard does not see
    found = prove(Plan(made), weights)["half"].largest
    assert one <= found <= one + np.abs(weights["half.bias"]).max() + 0.01


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
