"""Differentially private descent: what is clipped, what is added, what it costs, what it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from scipy import stats
from torch import nn

from dicom_node.core.errors import ConfigError
from fl_agent.accounting import noise_for
from fl_agent.figures import auc
from fl_agent.randomness import SecureSource
from fl_agent.train import (
    Recipe,
    SecureDPOptimizer,
    descend,
    patient_gradients,
    patient_loss,
    patient_rows,
    release_mean,
)
from tests.fl_agent.test_accounting import mechanism

FULL = Recipe(steps=1, sampling_rate=1.0, clip=0.3, learning_rate=1.0, momentum=0.0, averaged=1.0)


def some_patients(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Children with one to seven images, not in order, whose gradients are partly above and below the clip."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 8, 40)))
    labels = (patients % 3).astype(np.int64)
    images = rng.normal(size=(len(patients), 2, 5)).astype(np.float32) * rng.uniform(0.05, 1, (len(patients), 1, 1))
    return images.astype(np.float32), labels, patients


@pytest.mark.parametrize(("wrap", "at_once"), [(False, 2048), (True, 2048), (True, 20)])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_a_step_sums_each_patients_clipped_mean_gradient(wrap: bool, at_once: int, rate: float) -> None:
    """A bare linear layer goes by the closed form; the same in another module by a gradient for each image."""
    recipe, key = replace(FULL, sampling_rate=rate), bytes(range(32))
    drawn = SecureSource(key).coins(40, rate)
    images, labels, patients = some_patients()
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    total, clipped = torch.zeros(3, 5), 0
    for patient in range(40):
        weight = start.clone().requires_grad_()
        seen = torch.from_numpy(images[patients == patient].reshape(-1, 5))
        targets = torch.full((len(seen),), patient % 3)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(seen @ weight.T, targets), weight)
        clipped += int(gradient.norm() > FULL.clip)
        total += float(drawn[patient]) * gradient * min(1.0, FULL.clip / float(gradient.norm()))
    assert 5 < clipped < 35

    module = nn.Linear(5, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(start)
    rows = patient_rows(images, labels, patients)
    trained = nn.Sequential(module) if wrap else module
    (found,) = descend(trained, rows, recipe, 1e-9, SecureSource(key), at_once=at_once).values()
    torch.testing.assert_close(start - found, total / (40 * rate), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_each_drawn_patients_gradient_is_that_of_its_own_loss(at_once: int) -> None:
    generator = np.random.default_rng(4)
    patients = np.repeat(np.arange(6), [1, 3, 2, 1, 4, 1])
    inputs = generator.normal(size=(len(patients), 2, 7)).astype(np.float32)
    rows = patient_rows(inputs, np.array([0, 2, 1, 1, 0, 2])[patients], patients)
    weight = torch.from_numpy(generator.normal(size=(3, 7)).astype(np.float32)).requires_grad_()
    drawn = np.array([True, True, False, True, True, False])

    found = list(patient_gradients(weight.detach(), rows, drawn, at_once))
    assert np.concatenate([numbers for numbers, _ in found]).tolist() == [0, 1, 3, 4]
    for number, gradient in zip([0, 1, 3, 4], np.concatenate([some for _, some in found]), strict=True):
        of = rows.patients == number
        loss = patient_loss(rows.inputs[of] @ weight.T, rows.labels[of], rows.weights[of])
        (expected,) = torch.autograd.grad(loss, weight)
        np.testing.assert_allclose(gradient.reshape(3, 7), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_nobody_drawn_gives_no_gradient() -> None:
    rows = patient_rows(np.ones((2, 1, 3), dtype=np.float32), np.array([0, 1]), np.arange(2))
    assert sum(len(one) for _, one in patient_gradients(torch.zeros(3, 3), rows, np.zeros(2, bool))) == 0


@pytest.mark.parametrize("wrap", [False, True])
def test_noise_is_added_once_for_each_step_with_the_stated_deviation(wrap: bool) -> None:
    labels, patients = np.zeros(40, dtype=np.int64), np.arange(40)
    rows = patient_rows(np.zeros((40, 1, 8000), dtype=np.float32), labels, patients)
    module = nn.Linear(8000, 3, bias=False)
    nn.init.zeros_(module.weight)
    trained = nn.Sequential(module) if wrap else module
    (found,) = descend(trained, rows, FULL, 5.0, SecureSource(), at_once=10).values()  # four batches, one noise
    found = found.double() * 40  # the gradient of a black image is 0
    assert float(found.std()) == pytest.approx(5.0 * FULL.clip, rel=0.03)
    assert float(found.mean()) == pytest.approx(0.0, abs=5 * 5.0 * FULL.clip / math.sqrt(24000))


def test_two_runs_never_draw_the_same_noise() -> None:
    first, second = (SecureSource().normal(1000) for _ in range(2))
    assert not np.intersect1d(first, second).size


def test_secure_noise_is_standard_normal() -> None:
    drawn = SecureSource(bytes(32)).normal(100_000)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert drawn.std() == pytest.approx(1.0, abs=0.01)
    assert np.isfinite(drawn).all()


def test_poisson_sampling_takes_each_patient_with_its_own_coin() -> None:
    source = SecureSource(bytes(32))
    sizes = [int(source.coins(1000, 0.25).sum()) for _ in range(400)]
    assert np.mean(sizes) == pytest.approx(250, abs=3)
    # A shuffled batch would have no spread; a coin for each patient has that of the binomial distribution.
    assert np.std(sizes) == pytest.approx(math.sqrt(1000 * 0.25 * 0.75), rel=0.15)
    assert source.coins(1000, 1.0).all()


def test_a_patients_images_are_never_divided_between_batches() -> None:
    images, labels, patients = some_patients()
    rows = patient_rows(images, labels, patients)
    drawn = np.arange(40) % 3 > 0
    batches = list(rows.batches(drawn, at_once=20))
    assert len(batches) > 5
    assert max(len(batch) for batch in batches) <= 20
    owners = [set(rows.patients[batch].tolist()) for batch in batches]
    assert sum(len(owner) for owner in owners) == drawn.sum()
    assert set.union(*owners) == set(np.flatnonzero(drawn).tolist())
    assert torch.bincount(rows.patients, rows.weights).tolist() == pytest.approx([1.0] * 40)


def test_a_network_that_mixes_patients_is_refused() -> None:
    images, labels, patients = some_patients()
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ConfigError) as caught:
        descend(module, patient_rows(images, labels, patients), FULL, 1.0, SecureSource())
    assert caught.value.code == "mixes-patients"


def test_a_step_where_nobody_was_drawn_is_noised_all_the_same() -> None:
    images, labels, patients = some_patients()
    module = nn.Linear(5, 3, bias=False)
    nn.init.zeros_(module.weight)
    recipe = Recipe(steps=1, sampling_rate=1e-12, clip=1.0, learning_rate=1e-9, momentum=0.0, averaged=1.0)
    rows = patient_rows(images, labels, patients)
    assert descend(module, rows, recipe, 1.0, SecureSource())["weight"].abs().min() > 0


def test_a_gradient_is_not_noised_and_used_twice() -> None:
    module = GradSampleModule(nn.Linear(5, 3, bias=False), loss_reduction="sum")
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0),
        SecureSource(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=4,
    )
    inputs = torch.ones(4, 5, requires_grad=True)
    patient_loss(module(inputs), torch.zeros(4, dtype=torch.int64), torch.ones(4)).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="zero_grad"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="zero_grad"):  # a second noise on one sum would average the noise away
        optimizer.add_noise()


def test_a_released_mean_is_clipped_and_noised() -> None:
    vectors = np.zeros((1000, 4000))
    vectors[0, 0] = 1e6  # one patient far out of range moves the mean by clip / patients at most
    released = release_mean(vectors, 1.0, 8.0, SecureSource()) * 1000
    assert abs(released[0]) < 8.0 * 6
    assert released.std() == pytest.approx(8.0, rel=0.05)


def blobs(patients: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(patients) % 3
    centres = np.random.default_rng(0).normal(size=(3, 40))
    points = centres[labels] + rng.normal(size=(patients, 40)) * 2.0
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)[:, None], labels


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_epsilon_3_learns_what_is_separable_and_a_thousandfold_noise_does_not(rate: float) -> None:
    train, labels = blobs(1500, 1)
    unseen, truth = blobs(900, 2)
    recipe = Recipe(steps=40, sampling_rate=rate, clip=0.3, learning_rate=10.0, momentum=0.9)
    noise = noise_for(3.0, 1e-4, mechanism(sampling_rate=rate, steps=40)).noise_multiplier
    rows = patient_rows(train, labels, np.arange(1500))

    def score(multiplier: float) -> float:
        module = nn.Linear(40, 3, bias=False)
        nn.init.zeros_(module.weight)
        logits = unseen[:, 0] @ descend(module, rows, recipe, multiplier, SecureSource())["weight"].numpy().T
        return auc((logits[:, 1:].max(1) - logits[:, 0]).astype(np.float64), truth > 0)

    assert score(noise) > 0.9
    assert abs(np.mean([score(noise * 1000) for _ in range(6)]) - 0.5) < 0.3
