"""What each party sees of a network's course does not depend on the other's secret, and planted leaks are seen.

The method is that of `test_secrecy`. The network is a gate of each kind behind a convolution of its own, and a third
convolution of constant result on their sum.
"""

from __future__ import annotations

import numpy as np
import pytest

from secure_infer.program import INPUT, AdditionLayer, ConvolutionLayer, ReluLayer, TruncationLayer
from secure_infer.protocol import prg
from secure_infer.protocol.messages import Covered, Label, Masked, Material, Shifted, Tops
from secure_infer.protocol.packing import split, unpack
from tests.secure_infer.protocol.test_secrecy import leaks
from tests.secure_infer.small_network import NetworkTrio, network

RUNS, RUNS_PLANTED = 800, 250
MADE = network(
    [
        ConvolutionLayer(name="one", source=INPUT, out_channels=1, kernel=(1, 1)),
        ReluLayer(name="gate", source="one", shift=26, ceiling=2.0),
        ConvolutionLayer(name="two", source=INPUT, out_channels=1, kernel=(1, 1)),
        TruncationLayer(name="linear", source="two", shift=26),
        AdditionLayer(name="sum", first="gate", second="linear"),
        ConvolutionLayer(name="three", source="sum", out_channels=1, kernel=(1, 1)),
    ],
    shape=(1, 1, 2),
)
IMAGES = {"A": [0.0, 0.0], "B": [3.5, -3.25]}
#: Weight and bias of the first two convolutions. The image (0, 0) gives a positive and a negative value at the ReLU and
#: a small and a huge value at the truncation, whose one opened bit would tell little about small ones.
WEIGHTS = {"A": (0.5, 0.75, 2.5e5, 0.0), "B": (-3.0, -2.25, 0.0, 9e5)}
TOP = np.uint64(63)


def tensors_of(weights: str) -> dict[str, np.ndarray]:
    one, first, two, second = WEIGHTS[weights]
    values = {"one": (one, first), "two": (two, second), "three": (0.0, 0.5)}
    found = {f"{name}.weight": np.full((1, 1, 1, 1), weight) for name, (weight, _) in values.items()}
    return found | {f"{name}.bias": np.array([bias]) for name, (_, bias) in values.items()}


def derived(trio: NetworkTrio, to: str) -> bytes:
    """What a party can compute of the values under the other's masks alone, since it knows its own."""
    masks, find = trio.gate_masks(to[1]), lambda kind: [m for _, m in trio.transcript if isinstance(m, kind)]
    (shifted,), (tops,) = find(Shifted), find(Tops)
    gate, linear = trio.plan.gates["gate"], trio.plan.gates["linear"]
    high, _ = split(shifted.values, 2, gate.seen_bits)
    found = [unpack(high, 2, gate.seen_bits, low=gate.low) - masks["gate"].reshape(-1)]
    own, highest = masks["linear"].reshape(-1), unpack(tops.values, 2, 1)
    if to == "P0":
        found.append(highest ^ ((own + np.uint64(1 << 62)) >> TOP))
    else:
        number = trio.plan.numbers["linear"]
        tables, covered, answer = (
            next(m.values for m in find(kind) if m.layer == number) for kind in (Material, Covered, Masked)
        )
        found.append(np.frombuffer(covered, "<u8"))
        # Party 1's share of the mask's highest bit, plus what party 0 adds to it.
        last = np.frombuffer(tables[16:], "<u4") + unpack(answer, 2, linear.shift, "u4")
        found.append(np.where(highest, 0, last & ((1 << linear.shift) - 1)))
    return b"".join(one.tobytes() for one in found)


def view(images: str, weights: str, to: str, random, *, reuse: bool = False) -> np.ndarray:
    """All bytes that come to a party in two queries, and the differences of the second's vectors to the first's."""
    master = random(32)
    received, vectors = b"", []
    for number in range(2):
        trio = NetworkTrio(
            MADE, tensors_of(weights), random=Fixed(random(32)) if not reuse else Fixed(b"again"), master=master
        )
        trio.ask(np.array(IMAGES[images]).reshape(1, 1, 2) + (1.5 * number - 1.0 if images == "B" else 0.0))
        messages = [message for way, message in trio.transcript if way.endswith(to)]
        received += derived(trio, to)
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


def plant(monkeypatch, label: Label, number: int | None = None) -> None:
    """Draw 20 bits in place of 64, or none of the tables' bytes, where something is masked by this label."""
    words, stream = prg.Prg.words, prg.Prg.stream

    def weak_words(self, asked, layer, shape, ring):
        drawn = words(self, asked, layer, shape, ring)
        return drawn & np.uint64(0xFFFFF) if asked is label and number in (None, layer) else drawn

    def weak_stream(self, asked, layer, size):
        drawn = stream(self, asked, layer, size)
        return drawn * 0 if asked is label and number in (None, layer) else drawn

    monkeypatch.setattr(prg.Prg, "words", weak_words)
    monkeypatch.setattr(prg.Prg, "stream", weak_stream)


@pytest.mark.parametrize("to", ["P1", "P0"])
def test_a_partys_view_of_a_network_is_independent_of_the_others_secret(to):
    assert not leaks(*views(to, RUNS))


@pytest.mark.parametrize(
    ("to", "label"),
    [("P1", Label.INPUT_MASK), ("P1", Label.GATE_MASK), ("P0", Label.PARTY_GATE_MASK), ("P0", Label.WEIGHT_MASK)],
)
def test_a_planted_weak_mask_of_any_kind_is_seen(monkeypatch, to, label):
    plant(monkeypatch, label)
    assert leaks(*views(to, RUNS_PLANTED))


def test_missing_masks_of_the_opened_bits_are_seen(monkeypatch):
    plant(monkeypatch, Label.GATE_BITS)
    assert leaks(*[opened_signs(secret, np.random.default_rng([13, n]).bytes) for n, secret in enumerate("AB")])


def opened_signs(secret: str, random) -> np.ndarray:
    """The masked signs that party 1 opens, in many runs."""
    found = []
    for _ in range(200):
        trio = NetworkTrio(MADE, tensors_of("A"), random=random, master=random(32))
        trio.ask(np.array(IMAGES[secret]).reshape(1, 1, 2))
        (bits,) = [m for _, m in trio.transcript if type(m).__name__ == "Bits"]
        (signs,) = [m for _, m in trio.transcript if type(m).__name__ == "Signs"]
        theirs = unpack(bits.values, 2, 22, "u4") >> np.uint32(20)
        found.append(theirs.astype(np.uint8) ^ unpack(signs.values, 2, 2, "u1"))
    return np.stack(found)


@pytest.mark.parametrize(("to", "label"), [("P1", Label.GATE_TABLES), ("P0", Label.PARTY_GATE_MASK)])
def test_a_planted_weak_mask_of_the_truncation_alone_is_seen(monkeypatch, to, label):
    number = NetworkTrio(MADE, tensors_of("A")).plan.numbers["linear"]
    plant(monkeypatch, label, number)
    assert leaks(*views(to, RUNS_PLANTED))


def test_the_opened_signs_tell_nothing():
    assert not leaks(*[opened_signs(secret, np.random.default_rng([17, n]).bytes) for n, secret in enumerate("AB")])


def test_a_bundle_used_twice_is_seen_in_a_network():
    assert leaks(*views("P1", 40, reuse=True))
