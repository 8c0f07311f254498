"""What each party sees of a network's course does not depend on the other's secret, and planted leaks are seen.

The method is that of `test_secrecy`. The network is one convolution, a gate, a second convolution of constant result.
"""

from __future__ import annotations

import numpy as np
import pytest

from secure_infer.program import INPUT, ConvolutionLayer, ReluLayer
from secure_infer.protocol import prg
from secure_infer.protocol.messages import Label, Shifted
from tests.secure_infer.protocol.test_secrecy import leaks
from tests.secure_infer.small_network import NetworkTrio, network

RUNS, RUNS_PLANTED = 1000, 400
MADE = network(
    [
        ConvolutionLayer(name="one", source=INPUT, out_channels=1, kernel=(1, 1)),
        ReluLayer(name="gate", source="one", shift=26),
        ConvolutionLayer(name="two", source="gate", out_channels=1, kernel=(1, 1)),
    ],
    shape=(1, 1, 2),
)
IMAGES = {"A": [0.0, 0.0], "B": [3.5, -3.25]}
#: The image (0, 0) gives a positive value under A, a negative one under B, and the same output under both.
WEIGHTS = {"A": (0.5, 0.75), "B": (-3.0, -2.25)}
#: What depends on the masks of the last bundle alone shows in differences of two.
GATE_LABELS = (Label.GATE_TABLES, Label.GATE_MASK, Label.PARTY_GATE_MASK, Label.GATE_BITS)


def view(images: str, weights: str, to: str, random, *, reuse: bool = False) -> np.ndarray:
    """All bytes that come to a party in two queries, and the differences of the second's vectors to the first's."""
    weight, bias = WEIGHTS[weights]
    tensors = {
        "one.weight": np.full((1, 1, 1, 1), weight), "one.bias": np.array([bias]),
        "two.weight": np.zeros((1, 1, 1, 1)), "two.bias": np.array([0.5]),
    }  # fmt: skip
    values = iter(lambda: random(32), None)
    master = next(values)
    received, vectors = b"", []
    for number in range(2):
        trio = NetworkTrio(MADE, tensors, random=Fixed(random(32)) if not reuse else Fixed(b"again"), master=master)
        image = np.array(IMAGES[images]).reshape(1, 1, 2) + (1.5 * number if images == "B" else 0.0)
        trio.ask(image)
        messages = [message for way, message in trio.transcript if way.endswith(to)]
        # A party also knows its own mask of what is opened, and so the value under the other's alone.
        (shifted,) = [message for _, message in trio.transcript if isinstance(message, Shifted)]
        opened = np.frombuffer(shifted.values[:16], "<u8")
        received += (opened - trio.gate_masks(to[1])["gate"].reshape(-1)).tobytes()
        if not reuse:
            received += b"".join(one.encode() for one in messages)
        vectors.append([np.frombuffer(one.values, np.uint8) for one in messages if hasattr(one, "values")])
    differences = [(second - first).tobytes() for first, second in zip(*vectors, strict=True)]
    return np.frombuffer(received + b"".join(differences), np.uint8)


class Fixed:
    """A stream of random bytes from a seed."""

    def __init__(self, seed: bytes) -> None:
        self._generator = np.random.default_rng(list(seed))

    def __call__(self, size: int) -> bytes:
        return self._generator.bytes(size)


def views(to: str, runs: int, *, reuse: bool = False) -> list[np.ndarray]:
    found = []
    for number, secret in enumerate("AB"):
        random = np.random.default_rng([11, number]).bytes
        chosen = (secret, "A") if to == "P1" else ("A", secret)
        found.append(np.stack([view(*chosen, to, random, reuse=reuse) for _ in range(runs)]))
    return found


@pytest.mark.parametrize("to", ["P1", "P0"])
def test_a_partys_view_of_a_network_is_independent_of_the_others_secret(to):
    assert not leaks(*views(to, RUNS))


@pytest.mark.parametrize(
    ("to", "label"),
    [("P1", Label.INPUT_MASK), ("P1", Label.GATE_MASK), ("P0", Label.PARTY_GATE_MASK), ("P0", Label.WEIGHT_MASK)],
)
def test_a_planted_weak_mask_of_any_kind_is_seen(monkeypatch, to, label):
    strong = prg.Prg.words

    def weak(self, asked, layer, shape, ring):
        drawn = strong(self, asked, layer, shape, ring)
        return drawn & np.uint64(0xFFFFF) if asked is label else drawn

    monkeypatch.setattr(prg.Prg, "words", weak)
    assert leaks(*views(to, RUNS_PLANTED))


def test_missing_masks_of_the_opened_bits_are_seen(monkeypatch):
    strong = prg.Prg.stream

    def none(self, asked, layer, size):
        drawn = strong(self, asked, layer, size)
        return drawn * 0 if asked is Label.GATE_BITS else drawn

    monkeypatch.setattr(prg.Prg, "stream", none)
    assert leaks(*[opened_signs(secret, np.random.default_rng([13, n]).bytes) for n, secret in enumerate("AB")])


def opened_signs(secret: str, random) -> np.ndarray:
    """The masked signs that party 1 opens, in many runs."""
    weight, bias = WEIGHTS["A"]
    tensors = {
        "one.weight": np.full((1, 1, 1, 1), weight), "one.bias": np.array([bias]),
        "two.weight": np.zeros((1, 1, 1, 1)), "two.bias": np.array([0.5]),
    }  # fmt: skip
    found = []
    for _ in range(200):
        trio = NetworkTrio(MADE, tensors, random=random, master=random(32))
        trio.ask(np.array(IMAGES[secret]).reshape(1, 1, 2))
        (bits,) = [m for _, m in trio.transcript if type(m).__name__ == "Bits"]
        (signs,) = [m for _, m in trio.transcript if type(m).__name__ == "Signs"]
        theirs = (np.frombuffer(bits.values, "<u2") >> 10) & 1
        found.append(theirs.astype(np.uint8) ^ np.unpackbits(np.frombuffer(signs.values, np.uint8), count=2))
    return np.stack(found)


def test_the_opened_signs_tell_nothing():
    assert not leaks(*[opened_signs(secret, np.random.default_rng([17, n]).bytes) for n, secret in enumerate("AB")])


def test_a_bundle_used_twice_is_seen_in_a_network():
    assert leaks(*views("P1", 40, reuse=True))
