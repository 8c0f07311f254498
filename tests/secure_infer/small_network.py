"""Small networks of random shapes, the three parties of one query on them in this process, and an integer reference."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from secure_infer.card import ModelCard
from secure_infer.models import ModelStore, encode_weights
from secure_infer.program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    GuardLayer,
    NetworkProgram,
    ReluLayer,
    SumPoolLayer,
    shapes_of,
    sources,
    tensor_shapes,
)
from secure_infer.protocol.dealer import Deck
from secure_infer.protocol.messages import Bundle, Half, Label, Message
from secure_infer.protocol.network0 import NetworkHospital
from secure_infer.protocol.network1 import NetworkParty, PrivateNetwork
from secure_infer.protocol.network_plan import NetworkPlan
from secure_infer.protocol.party0 import Terms
from secure_infer.protocol.prg import Context, bundle_masks, gate_masks
from secure_infer.protocol.session import State
from tests.secure_infer.small_model import HOSPITAL, MODEL, PARTY, PUBLISHER, PUBLISHER_HEX, card_of

#: Fractional bits of activations and weights, by ring.
FRACTIONS = {64: (16, 26), 32: (8, 10)}


def network(layers, shape=(2, 6, 6), bits=64, guard=None, output=None, bound=4.0) -> NetworkProgram:
    fraction, weights = FRACTIONS[bits]
    return NetworkProgram(
        ring_bits=bits,
        input_shape=shape,
        fraction_bits=fraction,
        weight_fraction_bits=weights,
        input_bound=bound,
        output_bound=1e3,
        output=output or layers[-1].name,
        guard=guard,
        layers=tuple(layers),
    )


def every_kind(bits: int = 64, limit: float = 1000.0) -> NetworkProgram:
    """Dense, strided, padded and depthwise convolution, identity and projected residuals, pooling, guard and head."""
    shift = FRACTIONS[bits][1]
    layers = [
        ConvolutionLayer(name="stem", source=INPUT, out_channels=4, kernel=(3, 3), padding=(1, 1)),
        ReluLayer(name="relu1", source="stem", shift=shift),
        ConvolutionLayer(name="depth", source="relu1", out_channels=4, kernel=(3, 3), padding=(1, 1), groups=4),
        AdditionLayer(name="sum1", first="depth", second="relu1", second_shift=shift),
        ReluLayer(name="relu2", source="sum1", shift=shift),
        ConvolutionLayer(
            name="half", source="relu2", out_channels=6, kernel=(3, 3), padding=(1, 1), stride=(2, 2), groups=2
        ),
        ConvolutionLayer(name="project", source="relu2", out_channels=6, kernel=(1, 1), stride=(2, 2)),
        AdditionLayer(name="sum2", first="half", second="project"),
        ReluLayer(name="relu3", source="sum2", shift=shift),
        SumPoolLayer(name="pool", source="relu3", kernel=(2, 2), stride=(1, 1), padding=(1, 0)),
        FlattenLayer(name="flat", source="pool"),
        DenseLayer(name="head", source="flat", out_features=3),
        GuardLayer(name="sums", sources=("relu1", "relu2", "relu3"), limits=(limit,) * 3),
        ReluLayer(name="guard", source="sums", shift=shift),
    ]
    return network(layers, bits=bits, guard="guard", output="head")


def weights_of(made: NetworkProgram, seed: int = 1) -> dict[str, np.ndarray]:
    """Weights that keep values about as large as they are, and that float32 holds exactly."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in tensor_shapes(made).items():
        scale = 1 / np.sqrt(prod(shape[1:])) if len(shape) > 1 else 0.1
        found[name] = (scale * generator.normal(size=shape)).astype(np.float32).astype(np.float64)
    return found


def publish_network(root: Path, made: NetworkProgram, weights: dict[str, np.ndarray], version: str) -> ModelCard:
    """Put a network into a store whose publisher is `small_model.PUBLISHER_HEX`."""
    encoded = encode_weights(weights)
    card = card_of(made, encoded, version)
    ModelStore(root, [PUBLISHER_HEX]).publish(card, encoded, PUBLISHER)
    return card


@dataclass
class NetworkTrio:
    """Hospital, party 1 and dealer without sockets; every message is kept with its direction."""

    made: NetworkProgram
    weights: dict[str, np.ndarray]
    random: Callable[[int], bytes] = os.urandom
    master: bytes = b"k" * 32
    transcript: list[tuple[str, Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = NetworkPlan(self.made)
        self.model = PrivateNetwork.of("1", MODEL, self.plan, self.weights)
        self.terms = Terms(self.plan, MODEL, HOSPITAL, PARTY, lambda _: None, {})
        self.deck = Deck(
            self.master, frozenset({HOSPITAL}), frozenset({PARTY}), lifetime_s=60, largest=64, random=self.random
        )

    def _note(self, direction: str, message: Message | None) -> Message:
        assert message is not None
        self.transcript.append((direction, message))
        return message

    def prepare(self) -> tuple[NetworkHospital, NetworkParty]:
        """Run the offline phase."""
        hospital = NetworkHospital(self.terms, self.random)
        party = NetworkParty(HOSPITAL, lambda _: self.model, lambda _: None, 600)
        deal = self._note("P0→D", hospital.begin())
        bundle = self._note("D→P0", self.deck.handle(HOSPITAL, deal, 0.0))
        fetch = self._note("P1→D", party.handle(self._note("P0→P1", hospital.handle(bundle))))
        ready = None
        for part in self.deck.answers(PARTY, fetch, 0.0):
            assert len(part.encode()) <= party.dealer_limit
            ready = party.handle(self._note("D→P1", part))
        hospital.handle(self._note("P1→P0", ready))
        for covered in hospital.covers():
            assert len(covered.encode()) <= party.limit
            party.handle(self._note("P0→P1", covered))
        assert party.state is State.READY
        return hospital, party

    def ask(self, image: np.ndarray, sessions: tuple[NetworkHospital, NetworkParty] | None = None) -> np.ndarray:
        """Run a query and return the opened output."""
        hospital, party = sessions or self.prepare()
        (asked,) = hospital.query(image)
        while hospital.state is not State.DONE:
            assert len(asked.encode()) <= party.limit
            answer = self._note("P1→P0", party.handle(self._note("P0→P1", asked)))
            assert len(answer.encode()) <= hospital.limit
            asked = hospital.handle(answer)
        assert hospital.outputs is not None
        return hospital.outputs

    def gate_masks(self, names: str = "01") -> dict[str, np.ndarray]:
        """R0, R1 or the sum R of every gate of the last bundle."""
        find = lambda kind: next(one for _, one in reversed(self.transcript) if isinstance(one, kind))  # noqa: E731
        bundle, half = find(Bundle), find(Half)
        session = next(one for way, one in reversed(self.transcript) if way == "P0→D").session
        ours = bundle_masks(bundle.seed, Context(session, bundle.bundle, MODEL, HOSPITAL, PARTY))
        streams = {"0": (ours, Label.GATE_MASK)}
        streams["1"] = (gate_masks(half.weight_mask_seed, bundle.bundle), Label.PARTY_GATE_MASK)
        plan = self.plan
        return {
            name: sum(
                stream.words(label, plan.numbers[name], plan.shapes[name], plan.ring)
                for stream, label in (streams[one] for one in names)
            )
            for name in plan.gates
        }


def windows(values, layer, channel):
    """Every window of a padded channel: row, column, and its values as (row in kernel, column in kernel, value)."""
    (rows, columns), (down, right), (top, left) = layer.kernel, layer.stride, layer.padding
    height, width = len(values[channel]), len(values[channel][0])
    for y in range((height + 2 * top - rows) // down + 1):
        for x in range((width + 2 * left - columns) // right + 1):
            inside = [
                (i, j, values[channel][y * down + i - top][x * right + j - left])
                for i, j in itertools.product(range(rows), range(columns))
                if 0 <= y * down + i - top < height and 0 <= x * right + j - left < width
            ]
            yield y, x, inside


def exact(made: NetworkProgram, weights, image: np.ndarray, masks: dict[str, np.ndarray]) -> np.ndarray:
    """The slow obvious way: fixed-point numbers as Python integers, without any ring.

    A gate rounds a positive value up when the bits it drops carry under its mask: (y + R mod 2^t) >> t.
    """
    plan, shapes = NetworkPlan(made), shapes_of(made)
    encode = lambda array, bits: [round(v * 2**bits) for v in array.reshape(-1).tolist()]  # noqa: E731
    found = {INPUT: np.array(encode(image, made.fraction_bits), object).reshape(made.input_shape)}
    for layer in made.layers:
        given = [found[one] for one in sources(layer)]
        result = np.zeros(shapes[layer.name], object)
        if isinstance(layer, ConvolutionLayer | DenseLayer):
            weight = weights[f"{layer.name}.weight"]
            rounded = np.array(encode(weight, made.weight_fraction_bits), object).reshape(weight.shape)
            bias = encode(weights[f"{layer.name}.bias"], plan.fractions[layer.name])
            if isinstance(layer, DenseLayer):
                rounded = rounded[..., None, None]
                layer = ConvolutionLayer(  # noqa: PLW2901
                    name=layer.name, source=layer.source, out_channels=layer.out_features, kernel=(1, 1)
                )
            per_group = layer.out_channels // layer.groups
            for out in range(layer.out_channels):
                result[out] += bias[out]
                for k in range(rounded.shape[1]):
                    channel = out // per_group * rounded.shape[1] + k
                    for y, x, inside in windows(given[0], layer, channel):
                        result[out, y, x] += sum(rounded[out, k, i, j] * value for i, j, value in inside)
        elif isinstance(layer, ReluLayer):
            low = masks[layer.name].astype(object) % 2**layer.shift
            result = np.vectorize(lambda y, r, t=layer.shift: (y + r) >> t if y >= 0 else 0, otypes=[object])(
                given[0], low
            )
        elif isinstance(layer, AdditionLayer):
            result = given[0] * 2**layer.first_shift + given[1] * 2**layer.second_shift
        elif isinstance(layer, SumPoolLayer):
            for channel in range(len(given[0])):
                for y, x, inside in windows(given[0], layer, channel):
                    result[channel, y, x] = sum(value for _, _, value in inside)
        elif isinstance(layer, FlattenLayer):
            result = given[0].reshape(-1, 1, 1)
        else:
            limits = encode(np.array(layer.limits), plan.fractions[layer.name])
            sums = [one.sum() - limit for one, limit in zip(given, limits, strict=True)]
            result = np.array(sums, object).reshape(-1, 1, 1)
        found[layer.name] = result
    opened = found[made.output]
    return (opened / 2 ** plan.fractions[made.output]).astype(np.float64).reshape(len(opened), -1)


@dataclass
class Builder:
    """Adds random layers to a network, keeping what may be used next."""

    draw: Callable[[int, int], int]
    bits: int
    layers: list = field(default_factory=list)

    def make(self) -> NetworkProgram:
        shift = FRACTIONS[self.bits][1]
        shape = (self.draw(1, 3), self.draw(3, 6), self.draw(3, 6))
        here, size = INPUT, shape
        for number in range(self.draw(1, 3)):
            groups = size[0] if self.draw(0, 2) == 0 else 1
            side = self.draw(1, 3)
            stride, padding = self.draw(1, 2), self.draw(0, side // 2)
            out = groups * self.draw(1, 2) if groups > 1 else self.draw(1, 4)
            if min(size[1:]) + 2 * padding < side:
                side = 1
            if self.draw(0, 1):  # keeps its shape, so that its input can be added
                groups, out, side, stride, padding = 1, size[0], 1, 1, 0
            conv = ConvolutionLayer(
                name=f"conv{number}", source=here, out_channels=out, kernel=(side, side), stride=(stride, stride),
                padding=(padding, padding), groups=groups,
            )  # fmt: skip
            self.layers.append(conv)
            after = shapes_of(network(self.layers, shape, self.bits))[conv.name]
            last = conv.name
            if after == size:
                self.layers.append(AdditionLayer(name=f"sum{number}", first=last, second=here, second_shift=shift))
                last = f"sum{number}"
            self.layers.append(ReluLayer(name=f"relu{number}", source=last, shift=shift))
            here, size = f"relu{number}", after
        kernel = (self.draw(1, size[1]), self.draw(1, size[2]))
        self.layers.append(SumPoolLayer(name="pool", source=here, kernel=kernel, stride=(self.draw(1, 2), 1)))
        self.layers.append(FlattenLayer(name="flat", source="pool"))
        self.layers.append(DenseLayer(name="head", source="flat", out_features=self.draw(1, 3)))
        return network(self.layers, shape, self.bits, bound=1.0)
