"""Each network takes steps of DP-SGD, and what they leave computes the same in the clear and under encryption."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fl_agent.randomness import SecureSource
from fl_agent.train import Recipe, descend, patient_rows
from secure_infer.compile import compile_network
from secure_infer.networks import SmallCNN, resnet18
from tests.secure_infer.small_network import Trio

#: Name, module, and a shape of input that is small where the network takes any.
NETWORKS = [
    pytest.param(SmallCNN, (1, 128, 128), id="small-cnn"),
    pytest.param(lambda: resnet18(channels=1), (1, 64, 64), id="resnet18"),
]


def films(shape: tuple[int, ...], count: int = 12, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, *shape)).astype(np.float32)


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_a_network_trained_privately_gives_its_logits_under_encryption(make, shape) -> None:
    torch.manual_seed(1)
    network: nn.Module = make()
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    images, patients = films(shape), np.arange(12) // 2
    recipe = Recipe(steps=3, sampling_rate=0.6, clip=0.5, learning_rate=0.05, momentum=0.9)
    rows = patient_rows(images, patients % 3, patients)
    averaged = descend(network, rows, recipe, 0.1, SecureSource(bytes(32)), at_once=6)
    assert averaged.keys() == before.keys()
    moved = {name: float((one - before[name]).abs().max()) for name, one in averaged.items()}
    assert min(moved.values()) > 0, min(moved, key=moved.get)

    network.load_state_dict(averaged)
    network.eval()
    compiled = compile_network(network, images[:3, 0].astype(np.float64))
    trio = Trio(compiled.program, compiled.weights)
    for image in films(shape, 2, seed=7)[:, 0]:
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)[None])[0].numpy()
        assert np.abs(trio.ask(image.astype(np.float64)).reshape(-1) - expected).max() < 1e-3


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_the_gradient_that_is_clipped_is_the_whole_patients(make, shape) -> None:
    """Two patients of one and of three images; without noise a step is the sum of their clipped gradients."""
    torch.manual_seed(2)
    network: nn.Module = make()
    images, patients, labels = films(shape, 4, seed=3), np.array([0, 1, 1, 1]), np.array([2, 1, 1, 1])
    start = {name: one.detach().clone() for name, one in network.named_parameters()}
    wanted = {name: torch.zeros_like(one) for name, one in start.items()}
    for patient in (0, 1):
        seen = torch.from_numpy(images[patients == patient, 0])
        loss = nn.functional.cross_entropy(network(seen), torch.from_numpy(labels[patients == patient]))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        length = torch.stack([one.norm() for one in gradients]).norm()
        for name, one in zip(wanted, gradients, strict=True):
            wanted[name] += one * min(1.0, 0.3 / float(length)) / 2
    recipe = Recipe(steps=1, sampling_rate=1.0, clip=0.3, learning_rate=1.0, momentum=0.0, averaged=1.0)
    found = descend(network, patient_rows(images, labels, patients), recipe, 1e-9, SecureSource())
    for name, one in wanted.items():
        torch.testing.assert_close(start[name] - found[name], one, atol=2e-5, rtol=1e-3)
