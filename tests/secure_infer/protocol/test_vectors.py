"""The transcript of one query under fixed randomness, byte for byte; `python -m` this file writes it anew."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np

from secure_infer.protocol.messages import Label
from secure_infer.protocol.prg import Context, bundle_masks, weight_mask_id, weight_mask_seed, weight_masks
from secure_infer.protocol.ring import Ring
from tests.secure_infer.small_model import HOSPITAL, MODEL, PARTY, Trio, program

FILE = Path(__file__).with_name("vectors.json")
COLUMNS = [[1.0, -2.5], [0.125, 16.0]]
WEIGHTS = {
    "layer0.weight": [[0.5, -0.25], [1.0, 2.0], [-3.0, 0.0625]],
    "layer0.bias": [0.25, -1.0, 0.0],
    "layer1.weight": [[1.0, -1.0, 0.5]],
    "layer1.bias": [0.5],
}


def fixed_bytes() -> object:
    """Bytes that look random and are the same on every machine (SHAKE-128 of a counter)."""
    numbers = itertools.count()
    return lambda size: hashlib.shake_128(f"test vector {next(numbers)}".encode()).digest(size)


def transcript() -> dict[str, object]:
    made = program(2, 3, 1, columns=2)
    trio = Trio(made, {name: np.array(value) for name, value in WEIGHTS.items()}, random=fixed_bytes())
    opened = trio.ask(np.array(COLUMNS))
    return {
        "hospital": HOSPITAL.hex(),
        "party": PARTY.hex(),
        "model": MODEL.hex(),
        "master": trio.master.hex(),
        "program": made.model_dump(),
        "weights": WEIGHTS,
        "columns": COLUMNS,
        "frames": [[way, type(message).__name__, message.encode().hex()] for way, message in trio.transcript],
        "opened": opened.tolist(),
    }


def streams() -> dict[str, str]:
    seed = weight_mask_seed(bytes(32), MODEL, HOSPITAL, PARTY)
    masks = bundle_masks(bytes(32), Context(bytes(16), bytes(16), MODEL, HOSPITAL, PARTY))
    return {
        "weight mask seed": seed.hex(),
        "weight mask id": weight_mask_id(seed).hex(),
        "b of layer 0": Ring(64).to_bytes([weight_masks(seed).words(Label.WEIGHT_MASK, 0, (4,), Ring(64))]).hex(),
        "r of layer 0": Ring(64).to_bytes([masks.words(Label.INPUT_MASK, 0, (4,), Ring(64))]).hex(),
        "r of layer 1": Ring(64).to_bytes([masks.words(Label.INPUT_MASK, 1, (4,), Ring(64))]).hex(),
        "k0 of layer 0": Ring(64).to_bytes([masks.words(Label.OUTPUT_MASK, 0, (4,), Ring(64))]).hex(),
    }


def test_the_transcript_under_fixed_randomness_is_the_committed_one():
    assert json.loads(json.dumps(transcript())) == json.loads(FILE.read_text())["transcript"]


def test_the_pseudo_random_streams_are_the_committed_ones_and_all_differ():
    found = streams()
    assert found == json.loads(FILE.read_text())["streams"]
    assert len(set(found.values())) == len(found)


def test_a_stream_is_aes_128_in_counter_mode_from_the_labels_counter_block():
    # Recomputed from the block cipher alone, as the README states it.
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"VeilRay dealt-2pc 1|bundle" + bytes(32) + MODEL + HOSPITAL + PARTY
    key = HKDF(hashes.SHA256(), 16, salt=None, info=info).derive(bytes(32))
    block = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()
    blocks = block.update(bytes.fromhex("01000001" + "00" * 12) + bytes.fromhex("01000001" + "00" * 11 + "01"))
    assert blocks.hex() == streams()["r of layer 1"]


if __name__ == "__main__":
    FILE.write_text(json.dumps({"transcript": transcript(), "streams": streams()}, indent=1) + "\n")
