"""What each party sees does not depend on the other's secret, and the test that says so sees planted leaks.

A run is two queries with one secret. A view is every byte a party receives, what it can compute from its own mask of an
opened value, and the differences of the two queries' vectors, through which a mask used twice shows. Over many runs the
bytes at each position under secret A are compared with those under secret B (chi-square test of homogeneity, Bonferroni
over the positions). Randomness comes from a seeded generator, so the verdict is the same on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import chi2

from secure_infer.program import INPUT, AdditionLayer, ConvolutionLayer, Program, ReluLayer, TruncationLayer
from secure_infer.protocol import prg
from secure_infer.protocol.manifest import verified
from secure_infer.protocol.messages import (
    Bits,
    Bundle,
    Covered,
    Half,
    Label,
    Masked,
    Material,
    Message,
    Open,
    Shifted,
    Signs,
    Tops,
)
from secure_infer.protocol.packing import unpack
from secure_infer.protocol.seal import unseal
from tests.secure_infer.small_dealer import SEALING_KEY, SIGNER
from tests.secure_infer.small_model import head
from tests.secure_infer.small_network import Trio, network

#: Chance of a false alarm of one comparison.
ALARM = 1e-6


@dataclass(frozen=True)
class Case:
    """A program and pairs of secrets.

    Attributes
    ----------
    images : tuple of list
        Two images, for party 1's view.
    shown : list
        For which both weights give the same output: party 0 may learn outputs, and nothing else.
    weights : tuple of dict
        Two sets of weights, for party 0's view.
    runs, planted : int
        How many runs show that there is no leak, and how many that there is one.
    """

    made: Program
    images: tuple[list[float], list[float]]
    shown: list[float]
    weights: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
    runs: int
    planted: int


def matrix(weight: list[list[float]]) -> dict[str, np.ndarray]:
    return {"head.weight": np.array(weight)[..., None, None], "head.bias": np.array([0.5, -0.5])}


def gates(one: float, first: float, two: float, second: float) -> dict[str, np.ndarray]:
    """Weight and bias of a convolution before each gate, and of a third one whose result is constant."""
    values = {"one": (one, first), "two": (two, second), "three": (0.0, 0.5)}
    found = {f"{name}.weight": np.full((1, 1, 1, 1), weight) for name, (weight, _) in values.items()}
    return found | {f"{name}.bias": np.array([bias]) for name, (_, bias) in values.items()}


CASES = {
    "head": Case(
        head(2, 2, side=1),
        ([0.0, 0.0], [3.5, -7.25]),
        [1.0, 1.0],
        (matrix([[0.5, 0.25], [1.0, 0.0]]), matrix([[0.25, 0.5], [-1.0, 2.0]])),
        1000,
        600,
    ),
    "gates": Case(
        network(
            [
                ConvolutionLayer(name="one", source=INPUT, out_channels=1, kernel=(1, 1)),
                ReluLayer(name="gate", source="one", shift=26, ceiling=2.0, bits=52),
                ConvolutionLayer(name="two", source=INPUT, out_channels=1, kernel=(1, 1)),
                TruncationLayer(name="linear", source="two", shift=26),
                AdditionLayer(name="sum", first="gate", second="linear"),
                ConvolutionLayer(name="three", source="sum", out_channels=1, kernel=(1, 1)),
            ],
            shape=(1, 1, 2),
        ),
        ([0.0, 0.0], [3.5, -3.25]),
        # A positive and a negative value at the ReLU, and a small and a huge one at the truncation, whose one opened
        # bit would tell little about small ones.
        [0.0, 0.0],
        (gates(0.5, 0.75, 2.5e5, 0.0), gates(-3.0, -2.25, 0.0, 9e5)),
        800,
        250,
    ),
}
TOP = np.uint64(63)


class Fixed:
    """A stream of random bytes from a seed."""

    def __init__(self, seed: bytes) -> None:
        self._generator = np.random.default_rng(list(seed))

    def __call__(self, size: int) -> bytes:
        return self._generator.bytes(size)


def queries(
    case: Case, image: list[float], weights: dict[str, np.ndarray], random: Callable[[int], bytes], *, reuse: bool
) -> list[Trio]:
    """Two queries; with `reuse`, both under the same bundle, as no honest dealer would deal."""
    master, found = random(32), []
    for number in range(2):
        trio = Trio(case.made, weights, random=Fixed(b"again" if reuse else random(32)), master=master)
        moved = 1.5 * number - 1.0 if image is case.images[1] else 0.0
        trio.ask(np.array(image).reshape(case.made.input_shape) + moved)
        found.append(trio)
    return found


def derived(trio: Trio, to: str) -> bytes:
    """What a party can compute of the gates' values under the other's masks alone, since it knows its own."""
    masks, plan = trio.gate_masks(to[1]), trio.plan
    gate, linear, number = plan.gates["gate"], plan.gates["linear"], plan.numbers["linear"]

    def found(kind: type[Message], layer: int) -> bytes:
        return next(one.values for _, one in trio.transcript if isinstance(one, kind) and one.layer == layer)

    opened = unpack(found(Shifted, plan.numbers["gate"]), 2, gate.seen_bits, low=gate.low)
    seen = [opened - masks["gate"].reshape(-1)]
    own, highest = masks["linear"].reshape(-1), unpack(found(Tops, number), 2, 1)
    if to == "P0":
        seen.append(highest ^ ((own + np.uint64(1 << 62)) >> TOP))
    else:
        seen.append(np.frombuffer(found(Covered, number), "<u8"))
        # Party 1's share of the mask's highest bit, plus what party 0 adds to it.
        last = np.frombuffer(found(Material, number)[16:], "<u4") + unpack(found(Masked, number), 2, linear.shift, "u4")
        seen.append(np.where(highest, 0, last & ((1 << linear.shift) - 1)))
    return b"".join(one.tobytes() for one in seen)


def view(trios: list[Trio], to: str, *, differences_alone: bool) -> np.ndarray:
    """All that a party receives, and differences of the second query's vectors to the first's."""
    received, vectors = b"", []
    for trio in trios:
        messages = [message for way, message in trio.transcript if way.endswith(to)]
        if trio.plan.gates:
            received += derived(trio, to)
        if not differences_alone:
            received += b"".join(encoded(one) for one in messages)
        vectors.append([np.frombuffer(one.values, "<u1") for one in messages if getattr(one, "values", b"")])
    differences = [(second - first).tobytes() for first, second in zip(*vectors, strict=True)]
    return np.frombuffer(received + b"".join(differences), np.uint8)


def encoded(message: Message) -> bytes:
    """A message without what its receiver knows or may know from public values: the manifest, and the seal of a seed.

    The manifest's hashes are under a key, which `test_audit` tests: a hash would not show in a test of bytes.
    """
    if isinstance(message, Bundle):
        seed = unseal(message.sealed, SEALING_KEY, verified(message.signed, SIGNER.fingerprint).digest)
        return message.bundle + seed
    if isinstance(message, Open):
        return dataclasses.replace(message, manifest=bytes(32)).encode()
    return dataclasses.replace(message, signed=b"").encode() if isinstance(message, Half) else message.encode()


def leaks(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether the bytes at some position differ in distribution; arrays of shape (runs, positions)."""
    assert left.shape == right.shape
    least = 1.0
    for position in range(left.shape[1]):
        a = np.bincount(left[:, position], minlength=256)
        b = np.bincount(right[:, position], minlength=256)
        seen = (a + b) > 0
        degrees = int(seen.sum()) - 1
        if degrees:
            statistic = ((a - b)[seen] ** 2 / (a + b)[seen]).sum()
            least = min(least, float(chi2.sf(statistic, degrees)))
    return least * left.shape[1] < ALARM


def views(name: str, to: str, runs: int, *, reuse: bool = False) -> list[np.ndarray]:
    """Party 1's views of two images, or party 0's views of two weights."""
    case, found = CASES[name], []
    for secret in range(2):
        random = np.random.default_rng([11, secret]).bytes
        chosen = (case.images[secret], case.weights[0]) if to == "P1" else (case.shown, case.weights[secret])
        seen = [view(queries(case, *chosen, random, reuse=reuse), to, differences_alone=reuse) for _ in range(runs)]
        found.append(np.stack(seen))
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("to", ["P1", "P0"])
def test_a_partys_view_is_independent_of_the_others_secret(name, to):
    assert not leaks(*views(name, to, CASES[name].runs))


def plant(monkeypatch: pytest.MonkeyPatch, label: Label, kept: int = 0, layer: int | None = None) -> None:
    """Draw masks of some label, of one layer or all, with as few random bits as `kept` has: short ones, or none."""
    words, stream = prg.Prg.words, prg.Prg.stream

    def weak_words(self, asked, number, shape, ring):
        drawn = words(self, asked, number, shape, ring)
        return drawn & np.uint64(kept) if asked is label and layer in (None, number) else drawn

    def weak_stream(self, asked, number, size):
        drawn = stream(self, asked, number, size)
        # Streams that are not of ring elements: those of tables and bits.
        tables = asked in (Label.GATE_TABLES, Label.GATE_BITS)
        return drawn * 0 if tables and asked is label and layer in (None, number) else drawn

    monkeypatch.setattr(prg.Prg, "words", weak_words)
    monkeypatch.setattr(prg.Prg, "stream", weak_stream)
    # Planted arithmetic may give a wrong output, which party 0 must not look at here.
    monkeypatch.setattr("secure_infer.protocol.party0.TOLERANCE", np.inf)


@pytest.mark.parametrize("kept", [0xFFFFF, 0], ids=["weak", "missing"])
@pytest.mark.parametrize(
    ("name", "to", "label"),
    [
        ("head", "P1", Label.INPUT_MASK),
        ("head", "P0", Label.WEIGHT_MASK),
        ("gates", "P1", Label.INPUT_MASK),
        ("gates", "P1", Label.GATE_MASK),
        ("gates", "P0", Label.PARTY_GATE_MASK),
        ("gates", "P0", Label.WEIGHT_MASK),
    ],
)
def test_a_planted_weak_or_missing_mask_of_any_kind_is_seen(monkeypatch, name, to, label, kept):
    plant(monkeypatch, label, kept)
    assert leaks(*views(name, to, CASES[name].planted if kept else 60))  # a mask that is missing shows at once


@pytest.mark.parametrize(("to", "label"), [("P1", Label.GATE_TABLES), ("P0", Label.PARTY_GATE_MASK)])
def test_a_planted_weak_mask_of_the_truncation_alone_is_seen(monkeypatch, to, label):
    case = CASES["gates"]
    plant(monkeypatch, label, 0xFFFFF, Trio(case.made, case.weights[0]).plan.numbers["linear"])
    assert leaks(*views("gates", to, case.planted))


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_used_twice_is_seen(name):
    assert leaks(*views(name, "P1", 40, reuse=True))


def opened_signs(secret: int) -> np.ndarray:
    """The masked signs that party 1 opens, in many runs."""
    case, random, found = CASES["gates"], np.random.default_rng([13, secret]).bytes, []
    for _ in range(200):
        trio = Trio(case.made, case.weights[0], random=random, master=random(32))
        trio.ask(np.array(case.images[secret]).reshape(1, 1, 2))
        (bits,) = [one for _, one in trio.transcript if isinstance(one, Bits)]
        (signs,) = [one for _, one in trio.transcript if isinstance(one, Signs)]
        gate = trio.plan.gates["gate"]
        theirs = unpack(bits.values, 2, gate.joined_bits + 2, "u4") >> np.uint32(gate.joined_bits)
        found.append(theirs.astype(np.uint8) ^ unpack(signs.values, 2, 2, "u1"))
    return np.stack(found)


def test_the_opened_signs_tell_nothing():
    assert not leaks(*map(opened_signs, range(2)))


def test_missing_masks_of_the_opened_bits_are_seen(monkeypatch):
    plant(monkeypatch, Label.GATE_BITS)
    assert leaks(*map(opened_signs, range(2)))


@pytest.mark.parametrize("name", CASES)
def test_the_dealer_receives_the_same_bytes_whatever_the_secrets_are(name):
    case, seen = CASES[name], []
    for secret in range(2):
        random = np.random.default_rng(3).bytes
        trios = queries(case, case.images[secret], case.weights[secret], random, reuse=False)
        seen.append([one.encode() for trio in trios for way, one in trio.transcript if way.endswith("→D")])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4
