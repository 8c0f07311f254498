"""What each party sees does not depend on the other's secret, and the test that says so sees planted leaks.

A run is two queries with one secret. A view is every byte a party receives, and the differences of the two queries'
vectors, through which a mask used twice shows. Over thousands of runs the bytes at each position under secret A are
compared with those under secret B (chi-square test of homogeneity, Bonferroni over the positions). Randomness comes
from a seeded generator, so the verdict is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2

from secure_infer.protocol import linear, prg
from secure_infer.protocol.messages import Label, Masked, Output
from secure_infer.protocol.ring import Ring
from tests.secure_infer.small_model import Trio, program

RUNS = 2000
#: A planted leak shows in fewer.
RUNS_PLANTED = 600
#: Chance of a false alarm of one comparison.
ALARM = 1e-6
MADE = program(2, 2, columns=1)
BIAS = np.array([0.5, -0.5])
IMAGES = {"A": [[0.0], [0.0]], "B": [[3.5], [-7.25]]}
#: Both give the same output for the image (1, 1): party 0 may learn outputs, and nothing else.
WEIGHTS = {"A": [[0.5, 0.25], [1.0, 0.0]], "B": [[0.25, 0.5], [-1.0, 2.0]]}


def run(images: str, weights: str, random: Callable[[int], bytes], *, reuse: bool = False) -> Trio:
    """Two queries; with `reuse`, both under one bundle, as no honest session would do."""
    tensors = {"layer0.weight": np.array(WEIGHTS[weights]), "layer0.bias": BIAS}
    trio = Trio(MADE, tensors, random=random, master=random(32))
    values = np.array(IMAGES[images]) if images in IMAGES else np.ones((2, 1))
    hospital, party = trio.prepare()
    layers, corrections = hospital._layers, party._corrections
    trio.ask(values, (hospital, party))
    again = trio.prepare()
    if reuse:
        again[0]._layers, again[1]._corrections = layers, corrections
    trio.ask(values + 1.5 if images == "B" else values, again)
    return trio


def view(trio: Trio, to: str) -> np.ndarray:
    """All bytes that came to a party, and the difference of the two online vectors."""
    frames = [message for way, message in trio.transcript if way.endswith(to)]
    kind = Masked if to == "P1" else Output
    first, second = (np.frombuffer(one.values, "<u8") for one in frames if isinstance(one, kind))
    received = b"".join(one.encode() for one in frames) + (second - first).tobytes()
    return np.frombuffer(received, np.uint8)


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


def views(to: str, runs: int, *, reuse: bool = False) -> list[np.ndarray]:
    """Party 1's views of two images, or party 0's views of two weights."""
    found = []
    for number, secret in enumerate("AB"):
        random = np.random.default_rng([7, number]).bytes
        settings = (secret, "A") if to == "P1" else ("equal", secret)
        found.append(np.stack([view(run(*settings, random, reuse=reuse), to) for _ in range(runs)]))
    return found


@pytest.mark.parametrize("to", ["P1", "P0"])
def test_a_partys_view_is_independent_of_the_others_secret(to):
    assert not leaks(*views(to, RUNS))


def weak_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of 20 random bits in a ring of 64: as long as the secrets, but not as long as the ring."""
    strong = prg.Prg.words

    def weak(self: prg.Prg, label: Label, layer: int, shape: tuple[int, ...], ring: Ring) -> np.ndarray:
        return strong(self, label, layer, shape, ring) & np.uint64(0xFFFFF)

    monkeypatch.setattr(prg.Prg, "words", weak)


def no_mask_on_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "mask", lambda prepared, share: share)


def no_mask_on_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "blind", lambda number, weight, ring, weights: weight)


@pytest.mark.parametrize(
    ("to", "plant"), [("P1", weak_mask), ("P0", weak_mask), ("P1", no_mask_on_features), ("P0", no_mask_on_weights)]
)
def test_a_planted_weak_or_missing_mask_is_seen(monkeypatch, to, plant):
    plant(monkeypatch)
    # The planted arithmetic gives a wrong output, which party 0 must not look at here.
    monkeypatch.setattr("secure_infer.protocol.party0.TOLERANCE", np.inf)
    assert leaks(*views(to, RUNS_PLANTED))


def test_a_bundle_used_twice_is_seen():
    assert leaks(*views("P1", RUNS_PLANTED, reuse=True))


def test_the_dealer_receives_the_same_bytes_whatever_the_secrets_are():
    seen = []
    for images, weights in (("A", "A"), ("B", "B")):
        trio = run(images, weights, np.random.default_rng(3).bytes)
        seen.append([message.encode() for way, message in trio.transcript if way.endswith("→D")])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4
