"""A small signed model with random weights: a linear head, or whatever program a test brings."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from secure_infer.card import ModelCard
from secure_infer.models import ModelStore, encode_weights, public_hex
from secure_infer.program import INPUT, ConvolutionLayer, Program, tensor_shapes

PUBLISHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLISHER_HEX = public_hex(PUBLISHER)


def head(
    channels: int,
    classes: int,
    side: int = 2,
    *,
    bits: int = 64,
    fraction: int = 16,
    bound: float = 16.0,
    output: float = 1e4,
) -> Program:
    """A linear head on a square of `side` x `side` positions: a convolution of 1 x 1, without any gate."""
    return Program(
        ring_bits=bits,
        input_shape=(channels, side, side),
        fraction_bits=fraction,
        weight_fraction_bits=fraction,
        input_bound=bound,
        output_bound=output,
        output="head",
        layers=(ConvolutionLayer(name="head", source=INPUT, out_channels=classes, kernel=(1, 1)),),
    )


def weights_of(made: Program, seed: int = 1, scale: float = 1.0) -> dict[str, NDArray[np.float64]]:
    """Weights that keep values about as large as they are, and that float32 holds exactly."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in tensor_shapes(made).items():
        size = scale / np.sqrt(prod(shape[1:])) if len(shape) > 1 else 0.1
        found[name] = (size * generator.normal(size=shape)).astype(np.float32).astype(np.float64)
    return found


def card_of(made: Program, weights: bytes, version: str = "1") -> ModelCard:
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


def publish(
    root: Path,
    made: Program,
    weights: dict[str, NDArray[np.float64]] | None = None,
    *,
    seed: int = 1,
    version: str = "1",
) -> ModelCard:
    """Put a model, by default one of random weights, into a store whose publisher is `PUBLISHER_HEX`."""
    encoded = encode_weights(weights_of(made, seed) if weights is None else weights)
    card = card_of(made, encoded, version)
    ModelStore(root, [PUBLISHER_HEX]).publish(card, encoded, PUBLISHER)
    return card
