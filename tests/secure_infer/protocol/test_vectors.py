"""The transcripts of three queries under fixed randomness, byte for byte; `python -m` this file writes them anew.

A second implementation can check itself against `vectors.json`: every random number that anybody drew stands there, and
every frame that anybody sent, for a linear head and for a network that needs every kind of message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_infer.program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    GuardLayer,
    Program,
    ReluLayer,
    SliceLayer,
    SumPoolLayer,
    TruncationLayer,
)
from secure_infer.protocol.manifest import Signer, verified
from secure_infer.protocol.messages import KINDS, Audit, Audited, Failure, Label, TupleDeal, decode
from secure_infer.protocol.prg import (
    Context,
    bundle_masks,
    gate_masks,
    private_masks,
    weight_mask_id,
    weight_mask_seed,
    weight_masks,
)
from secure_infer.protocol.ring import Ring
from secure_infer.protocol.seal import unseal
from tests.secure_infer.small_dealer import DEALER_KEY, SEALING_KEY, SIGNER
from tests.secure_infer.small_model import head, weights_of
from tests.secure_infer.small_network import HOSPITAL, MODEL, PARTY, Trio, network

FILE = Path(__file__).with_name("vectors.json")


def every_message() -> Program:
    """Gates of each kind between a convolution, a residual sum and a dense layer, and the guard of the ReLU."""
    layers = [
        ConvolutionLayer(name="one", source=INPUT, out_channels=2, kernel=(2, 2), padding=(1, 1), stride=(2, 2)),
        ReluLayer(name="relu", source="one", shift=26, bits=53),
        ConvolutionLayer(name="two", source="relu", out_channels=2, kernel=(1, 1), groups=2),
        AdditionLayer(name="sum", first="two", second="relu", second_shift=26),
        ReluLayer(name="relu6", source="sum", shift=26, ceiling=1.0, bits=58),
        ConvolutionLayer(name="three", source="relu6", out_channels=1, kernel=(1, 1)),
        TruncationLayer(name="linear", source="three", shift=26),
        SliceLayer(name="slice", source="linear", axis="columns", offset=0, step=1, count=2),
        SumPoolLayer(name="pool", source="slice", kernel=(2, 1), stride=(1, 1)),
        FlattenLayer(name="flat", source="pool"),
        DenseLayer(name="head", source="flat", out_features=3),
        GuardLayer(name="sums", sources=("relu",), limits=(64.0,)),
        ReluLayer(name="guard", source="sums", shift=26, bits=48),
    ]
    return network(layers, shape=(1, 2, 3), guard="guard", output="head")


def whole_ring() -> Program:
    """A gate that compares as much as there can be, by digits of six bits in place of five."""
    layers = [
        DenseLayer(name="one", source=INPUT, out_features=2),
        ReluLayer(name="relu", source="one", shift=26),
        DenseLayer(name="head", source="relu", out_features=1),
    ]
    return network(layers, shape=(2, 1, 1), output="head")


PROGRAMS = {"head": head(2, 3), "network": every_message(), "whole ring": whole_ring()}


class Recorded:
    """Bytes that look random and are the same on every machine (SHAKE-128 of a counter), kept in order."""

    def __init__(self) -> None:
        self.drawn: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self.drawn.append(hashlib.shake_128(f"test vector {len(self.drawn)}".encode()).digest(size))
        return self.drawn[-1]


def transcript(name: str, signer: Signer) -> dict[str, object]:
    made, random = PROGRAMS[name], Recorded()
    # Few bits, so that a reader of the file can follow.
    weights = {key: np.round(value * 16) / 16 for key, value in weights_of(made).items()}
    image = np.round(np.random.default_rng(2).uniform(-2, 2, made.input_shape) * 8) / 8
    trio = Trio(made, weights, random=random, signer=signer)
    opened = trio.ask(image)
    return {
        "hospital": HOSPITAL.hex(),
        "party": PARTY.hex(),
        "model": MODEL.hex(),
        "master": trio.master.hex(),
        "random": [one.hex() for one in random.drawn],
        "program": made.model_dump(),
        "weights": {key: value.tolist() for key, value in weights.items()},
        "image": image.tolist(),
        "frames": [[way, type(message).__name__, message.encode().hex()] for way, message in trio.transcript],
        "opened": opened.tolist(),
    }


def streams() -> dict[str, str]:
    seed = weight_mask_seed(bytes(32), MODEL, HOSPITAL, PARTY)
    bundle = bundle_masks(bytes(32), Context(bytes(16), MODEL, HOSPITAL, PARTY))
    words: Callable[..., str] = lambda key, label, layer: key.words(label, layer, (4,), Ring(64)).tobytes().hex()  # noqa: E731
    return {
        "weight mask seed": seed.hex(),
        "weight mask id": weight_mask_id(seed).hex(),
        "b of layer 1": words(weight_masks(seed), Label.WEIGHT_MASK, 1),
        "r of the input": words(bundle, Label.INPUT_MASK, 0),
        "r of layer 1": words(bundle, Label.INPUT_MASK, 1),
        "k0 of layer 1": words(bundle, Label.OUTPUT_MASK, 1),
        "R0 of layer 1": words(bundle, Label.GATE_MASK, 1),
        "R1 of layer 1": words(gate_masks(seed, bytes(16)), Label.PARTY_GATE_MASK, 1),
        "tables of layer 1": bundle.stream(Label.GATE_TABLES, 1, 32).tobytes().hex(),
        "bits of layer 1": private_masks(bytes(32), seed).stream(Label.GATE_BITS, 1, 32).tobytes().hex(),
    }


def audit() -> list[str]:
    """Frames of what is in no course of a query."""
    return [
        one.encode().hex() for one in (Audit(b"B" * 16, b"e" * 32), Audited(b"B" * 16), Failure(1, b"out-of-order"))
    ]


def vectors() -> dict[str, object]:
    keys = {"certificate": SIGNER.certificate, "sealing_key": SEALING_KEY.private_bytes_raw()}
    found = {name: transcript(name, SIGNER) for name in PROGRAMS}
    return {**found, "streams": streams(), "others": audit(), **{name: key.hex() for name, key in keys.items()}}


def comparable(found: dict[str, object]) -> dict[str, object]:
    """Without the sealed seed, which is another one each time."""
    frames = [
        [way, kind, frame[: 2 * 17] + frame[2 * 97 :] if kind == "Bundle" else frame]
        for way, kind, frame in found["frames"]
    ]
    return {**found, "frames": frames}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_transcript_under_fixed_randomness_is_the_committed_one(name):
    kept = json.loads(FILE.read_text())
    made = json.loads(json.dumps(transcript(name, Signer(bytes.fromhex(kept["certificate"]), DEALER_KEY))))
    assert comparable(made) == comparable(kept[name])


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_committed_sealed_seed_opens_to_the_seed_that_was_drawn(name):
    kept = json.loads(FILE.read_text())
    (frame,) = [bytes.fromhex(frame) for _, kind, frame in kept[name]["frames"] if kind == "Bundle"]
    message = decode(frame)
    manifest = verified(message.signed, hashlib.sha256(bytes.fromhex(kept["certificate"])).digest())
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(kept["sealing_key"]))
    assert [unseal(message.sealed, key, manifest.digest).hex()] == kept[name]["random"]


def test_every_kind_of_message_stands_in_the_vectors_and_reads_back():
    kept = json.loads(FILE.read_text())
    frames = [bytes.fromhex(frame) for name in PROGRAMS for _, _, frame in kept[name]["frames"]]
    frames += map(bytes.fromhex, kept["others"])
    # What the engine CrypTen sends follows from that library, too.
    ours = {kind for number, kind in KINDS.items() if number < TupleDeal.KIND}
    assert {type(decode(frame)) for frame in frames} == ours
    assert all(decode(frame).encode() == frame for frame in frames)


def test_the_pseudo_random_streams_are_the_committed_ones_and_all_differ():
    found = streams()
    assert found == json.loads(FILE.read_text())["streams"]
    assert len(set(found.values())) == len(found)


def test_a_stream_is_aes_128_in_counter_mode_from_the_labels_counter_block():
    # Recomputed from the block cipher alone, as the README states it.
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"VeilRay dealt-2pc 1|bundle" + bytes(16) + MODEL + HOSPITAL + PARTY
    key = HKDF(hashes.SHA256(), 16, salt=None, info=info).derive(bytes(32))
    block = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()
    blocks = block.update(bytes.fromhex("01000001" + "00" * 12) + bytes.fromhex("01000001" + "00" * 11 + "01"))
    assert blocks.hex() == streams()["r of layer 1"]


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")
