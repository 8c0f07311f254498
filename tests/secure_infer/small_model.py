"""A small signed model with random weights, and the three parties of one query in this process."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from secure_infer.card import LinearLayer, ModelCard, Program
from secure_infer.models import ModelStore, encode_weights, public_hex
from secure_infer.program import NetworkProgram
from secure_infer.protocol.dealer import Deck
from secure_infer.protocol.messages import Message, Output
from secure_infer.protocol.party0 import ChainHospital, Terms
from secure_infer.protocol.party1 import PartySession, PrivateModel
from secure_infer.protocol.plan import Plan

HOSPITAL, PARTY, MODEL = b"h" * 32, b"p" * 32, b"m" * 32
PUBLISHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def program(
    *sizes: int, columns: int = 4, bits: int = 64, fraction: int = 16, bound: float = 16.0, output: float = 1e4
) -> Program:
    """A chain of linear layers, `sizes` features at each joint."""
    layers = tuple(
        LinearLayer(name=f"layer{number}", in_features=a, out_features=b, columns=columns)
        for number, (a, b) in enumerate(itertools.pairwise(sizes))
    )
    return Program(ring_bits=bits, fraction_bits=fraction, input_bound=bound, output_bound=output, layers=layers)


def random_weights(made: Program, seed: int = 1, scale: float = 1.0) -> dict[str, NDArray[np.float64]]:
    """Weights that float32 holds exactly, as a model store would give them."""
    generator = np.random.default_rng(seed)
    found = {}
    for layer in made.layers:
        weight = scale * generator.normal(size=(layer.out_features, layer.in_features))
        found[f"{layer.name}.weight"] = weight.astype(np.float32).astype(np.float64)
        found[f"{layer.name}.bias"] = generator.normal(size=layer.out_features).astype(np.float32).astype(np.float64)
    return found


def card_of(made: Program | NetworkProgram, weights: bytes, version: str = "1") -> ModelCard:
    """A card that holds nothing but what a card must hold."""
    share = {"images": (1, 1, 1), "patients": (1, 1, 1)}
    return ModelCard.model_validate(
        {
            "name": "small",
            "version": version,
            "intended_use": "tests",
            "classes": ("normal", "bacterial", "viral"),
            "population": {"min_age_years": 0, "max_age_years": 120},
            "preprocessing": {
                "side": 224, "resampling": "bicubic, antialiased", "offset": 0, "divisor": 255, "normalisation": "none",
            },
            "trunk": {"name": "efficientnet-lite0", "sha256": "0" * 64, "taps": ("head",), "source": "none"},
            "suffix": made.model_dump(),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "calibration": {"scale": 1, "offsets": (0, 0, 0), "method": "none"},
            "operating_point": {"absent_below": 0.3, "present_from": 0.7, "undetermined_share": 0.1},
            "data": {
                "name": "none", "licence": "none", "splits": [{"split": "train", **share}], "how_split": "not at all",
            },
            "privacy": {
                "epsilon": 1, "delta": 1e-4, "unit": "patient", "adjacency": "add or remove one", "accountant": "none",
                "noise": "none", "not_covered": "all",
                "mechanisms": [
                    {
                        "name": "none", "partition": "none", "kind": "Gaussian", "patients": 1, "sampling_rate": 1,
                        "noise_multiplier": 1, "clip": 1, "steps": 1,
                    }
                ],
            },
            "figures": (), "context": (), "limits": ("not for use",), "licence": "none",
        }
    )  # fmt: skip


def publish(root: Path, made: Program, seed: int = 1, version: str = "1", scale: float = 1.0) -> ModelCard:
    """Put a model into a store whose publisher is `PUBLISHER_HEX`."""
    weights = encode_weights(random_weights(made, seed, scale))
    card = card_of(made, weights, version)
    ModelStore(root, [PUBLISHER_HEX]).publish(card, weights, PUBLISHER)
    return card


PUBLISHER_HEX = public_hex(PUBLISHER)


@dataclass
class Trio:
    """Hospital, party 1 and dealer without sockets; every message is kept with its direction.

    Attributes
    ----------
    transcript : list of (str, Message)
        Directions such as ``"P0→D"``, in order.
    """

    made: Program
    weights: dict[str, NDArray[np.float64]]
    random: Callable[[int], bytes] = os.urandom
    master: bytes = b"k" * 32
    spend: Callable[[bytes], None] = lambda bundle: None
    transcript: list[tuple[str, Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = Plan(self.made)
        self.model = PrivateModel.of("1", MODEL, self.plan, self.weights)
        self.terms = Terms(self.plan, MODEL, HOSPITAL, PARTY, self.spend, {})
        self.deck = Deck(
            self.master, frozenset({HOSPITAL}), frozenset({PARTY}), lifetime_s=60, largest=64, random=self.random
        )

    def _note(self, direction: str, message: Message | None) -> Message:
        assert message is not None
        self.transcript.append((direction, message))
        return message

    def prepare(self) -> tuple[ChainHospital, PartySession]:
        """Run the offline phase."""
        hospital = ChainHospital(self.terms, self.random)
        party = PartySession(HOSPITAL, lambda _: self.model, self.spend, 600)
        deal = self._note("P0→D", hospital.begin())
        bundle = self._note("D→P0", self.deck.handle(HOSPITAL, deal, 0.0))
        opening = self._note("P0→P1", hospital.handle(bundle))
        fetch = self._note("P1→D", party.handle(opening))
        half = self._note("D→P1", self.deck.handle(PARTY, fetch, 0.0))
        hospital.handle(self._note("P1→P0", party.handle(half)))
        return hospital, party

    def ask(
        self, columns: NDArray[np.float64], sessions: tuple[ChainHospital, PartySession] | None = None
    ) -> NDArray[np.float64]:
        """Run a query and return the opened output, shape (out_features, columns)."""
        hospital, party = sessions or self.prepare()
        answer = None
        for masked in hospital.query(columns):
            answer = party.handle(self._note("P0→P1", masked))
        assert isinstance(answer, Output)
        hospital.handle(self._note("P1→P0", answer))
        assert hospital.outputs is not None
        return hospital.outputs


def exact(made: Program, weights: dict[str, NDArray[np.float64]], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The slow obvious way: the same fixed-point numbers as Python integers, without any ring."""
    bits = made.fraction_bits
    values = [[round(value * 2**bits) for value in row] for row in columns.tolist()]
    for depth, layer in enumerate(made.layers):
        matrix = [[round(value * 2**bits) for value in row] for row in weights[f"{layer.name}.weight"].tolist()]
        bias = [round(value * 2 ** (bits * (depth + 2))) for value in weights[f"{layer.name}.bias"].tolist()]
        values = [
            [sum(w * values[k][column] for k, w in enumerate(row)) + bias[number] for column in range(len(values[0]))]
            for number, row in enumerate(matrix)
        ]
    return np.array(values, dtype=object) / 2 ** (bits * (len(made.layers) + 1))
