"""Each network takes the steps of DP-SGD, with the patient as unit; `tests/system` evaluates what they leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fl_agent import order
from fl_agent.randomness import SecureSource
from fl_agent.train import Recipe, descend, patient_rows
from secure_infer.networks import ARCHITECTURES, SmallCNN, lite0_suffix, resnet18

#: Less than any gradient here.
CLIP = 0.02


def lite0() -> nn.Module:
    """The last stages as they would be in the middle of training: no longer with a head of zeros."""
    network = lite0_suffix("block14")
    nn.init.normal_(network.dense.weight, std=0.05)
    return network


#: Module, and a shape of input that is small where the network takes any.
NETWORKS = [
    pytest.param(SmallCNN, (1, 128, 128), id="small-cnn"),
    pytest.param(lambda: resnet18(channels=1), (1, 32, 32), id="resnet18"),
    pytest.param(lambda: resnet18(channels=1, pooling="max"), (1, 32, 32), id="resnet18-max"),
    pytest.param(lite0, (192, 7, 7), id="efficientnet-lite0"),
]


def films(shape: tuple[int, ...], count: int = 12, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, *shape)).astype(np.float32)


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
        assert float(length) > 2 * CLIP  # else nothing would tell a patient's clipped gradient from its images'
        for name, one in zip(wanted, gradients, strict=True):
            wanted[name] += one * min(1.0, CLIP / float(length)) / 2
    recipe = Recipe(steps=1, sampling_rate=1.0, clip=CLIP, learning_rate=1.0, momentum=0.0, averaged=1.0)
    found = descend(network, patient_rows(images, labels, patients), recipe, 1e-9, SecureSource())
    moved = torch.cat([(start[name] - found[name]).flatten() for name in wanted])
    step = torch.cat([one.flatten() for one in wanted.values()])
    # Of millions of small numbers: as one vector, or each would be within any tolerance by itself.
    assert float((moved - step).norm()) < 0.01 * float(step.norm())


def test_the_command_line_knows_every_network() -> None:
    assert tuple(ARCHITECTURES) == order.NETWORKS
