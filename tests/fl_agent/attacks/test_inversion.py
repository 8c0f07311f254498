"""Films from updates: an attacker sees the patient in a plain update and nobody in what leaves the hospital.

The same film, the same attack, the same effort. Pictures and larger figures: ``python -m tests.bench.attacks``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicom_node.phantom.drawing import KINDS, draw
from fl_agent.accounting import epsilon, release_of
from fl_agent.head import BIAS_INPUT, linear_head
from tests.fl_agent.attacks import updates
from tests.fl_agent.attacks.inversion import (
    Dense,
    SmallNetwork,
    gradient,
    invert,
    rank,
    read_off,
    shrunk,
    similarity,
    stretched,
)

SIDE, STEPS = 32, 150
#: Of one step for one patient at δ = 1e-5: as little noise as epsilon 8 allows a run of a single step.
NOISE = 0.6
TRUE = 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def gallery() -> NDArray[np.float32]:
    pictures = [draw(seed, KINDS[seed % 3], (96, 96)) for seed in range(24)]
    return np.stack([shrunk(one.astype(np.float32) / 255, SIDE) for one in pictures])


@pytest.fixture(scope="module")
def batch(gallery: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(gallery[[TRUE]])[:, None], torch.tensor([TRUE % 3])


def test_the_noise_is_that_of_epsilon_8_in_one_step() -> None:
    assert epsilon([release_of("step", "patients", 1000, NOISE)], 1e-5) == pytest.approx(8.0, rel=0.02)


@pytest.mark.parametrize("way", ["plain", "clipped", "noised", "masked"])
def test_a_search_finds_the_film_in_a_plain_update_and_not_in_what_leaves(
    way: str, gallery: NDArray[np.float32], batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    network = SmallNetwork(SIDE)
    seen = gradient(network, *batch)
    if way == "clipped":  # the noise protects, not the clip
        seen = updates.private(network, *batch, 1e-9)
    elif way == "noised":
        seen = updates.private(network, *batch, NOISE)
    elif way == "masked":
        seen = updates.masked(seen, tmp_path)
    (found,) = invert(network, seen, batch[1], SIDE, steps=STEPS)
    if way in {"plain", "clipped"}:
        assert similarity(found, gallery[TRUE]) > 0.6
        assert rank(found, TRUE, gallery) == 1
    else:
        assert similarity(found, gallery[TRUE]) < 0.2


@pytest.mark.parametrize("way", ["plain", "noised", "masked"])
def test_a_first_layer_shows_the_film_itself_unless_it_is_noised_or_masked(
    way: str, gallery: NDArray[np.float32], batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    network: nn.Module = Dense(SIDE)
    seen = gradient(network, *batch)
    if way == "plain":
        np.testing.assert_allclose(read_off(seen, SIDE), gallery[TRUE], atol=1e-4)
        return
    seen = updates.private(network, *batch, NOISE) if way == "noised" else updates.masked(seen, tmp_path)
    assert similarity(stretched(read_off(seen, SIDE)), gallery[TRUE]) < 0.2


@pytest.mark.parametrize("way", ["plain", "noised", "masked"])
def test_the_head_shows_a_patients_features_unless_they_are_noised_or_masked(way: str, tmp_path: Path) -> None:
    """What is trained by default: its gradient is an outer product, from which the features and so the film follow."""
    random = np.random.default_rng(1)
    features = random.normal(size=(200, 500)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    inputs = torch.from_numpy(np.column_stack([features[[TRUE]], np.full(1, BIAS_INPUT, dtype=np.float32)]))
    labels, head = torch.tensor([1]), linear_head(500)
    seen = gradient(head, inputs, labels)
    if way != "plain":
        seen = updates.private(head, inputs, labels, NOISE) if way == "noised" else updates.masked(seen, tmp_path)
    # Of the rows of the outer product (p - y) x, that of the label is -2/3 x.
    cosines = features @ -seen[0][1, :-1].numpy() / seen[0][1, :-1].norm().item()
    if way == "plain":
        assert cosines[TRUE] > 0.999
    else:
        assert abs(cosines[TRUE]) < 0.25


def test_similarity_and_rank_are_what_they_are_called(gallery: NDArray[np.float32]) -> None:
    picture = gallery[TRUE]
    noise = np.random.default_rng(0).random(picture.shape).astype(np.float32)
    assert similarity(picture, picture) == pytest.approx(1.0)
    assert similarity(picture, 1 - picture) < 0.2
    assert similarity(picture, noise) < 0.2
    steps = [similarity(picture, picture + share * (noise - 0.5)) for share in (0.0, 0.1, 0.3, 1.0)]
    assert sorted(steps, reverse=True) == steps
    ranks = [rank(one, number, gallery) for number, one in enumerate(gallery)]
    assert ranks == [1] * len(gallery)
    mean = np.mean([rank(np.random.default_rng(s).random(picture.shape), TRUE, gallery) for s in range(200)])
    assert 8 < mean < 17
