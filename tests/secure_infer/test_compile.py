"""A compiled network computes what the module computes, and what cannot be compiled is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as with_batch_norm

from dicom_node.core.errors import ConfigError, Refused
from secure_infer.clear import PlaintextEngine, evaluate
from secure_infer.compile import compile_network
from secure_infer.engine import input_of
from secure_infer.networks import SmallCNN
from secure_infer.program import ReluLayer
from tests.secure_infer.small_network import Trio


def trained(network: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """Random weights, and running statistics of BatchNorm that are not those of the beginning."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, *shape))
    return network.eval()


def images(shape: tuple[int, int, int], count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (count, *shape))


def logits(network: nn.Module, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(image[None]).float()).numpy()[0]


def resnet18() -> nn.Module:
    """ResNet-18 as torchvision trains it, less the max-pooling."""
    network = with_batch_norm(weights=None, num_classes=3)
    network.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    return network


@pytest.mark.parametrize(
    ("make", "shape"),
    [(SmallCNN, (1, 128, 128)), (resnet18, (3, 64, 64))],
    ids=["small CNN", "ResNet-18 with BatchNorm"],
)
def test_a_whole_network_under_encryption_gives_the_modules_logits(make, shape):
    network = trained(make(), shape)
    compiled = compile_network(network, images(shape))
    trio = Trio(compiled.program, compiled.weights)
    sample = images(shape, 2, seed=9)
    for image in (*sample, sample[0] * 0 + 1, sample[0] * 0, -sample[0]):
        opened = trio.ask(image).reshape(-1)
        trio.transcript.clear()
        assert np.abs(opened - logits(network, image)).max() < 1e-3
    with pytest.raises(Refused):
        input_of(compiled.program, sample[0] * 100)


def test_the_engine_in_the_clear_gives_the_modules_logits():
    network = trained(SmallCNN(), (1, 128, 128))
    compiled = compile_network(network, images((1, 128, 128)))
    image = images((1, 128, 128), 1, seed=4)[0]
    found = PlaintextEngine(compiled.program, compiled.weights).infer(image)
    assert np.abs(found.logits - logits(network, image)).max() < 1e-5


def test_the_guard_of_a_compiled_network_covers_every_other_gate():
    compiled = compile_network(trained(SmallCNN(), (1, 128, 128)), images((1, 128, 128)))
    gates = [layer.name for layer in compiled.program.layers if isinstance(layer, ReluLayer)]
    assert gates[-1] == compiled.program.guard
    guard = compiled.program.layers[-2]
    assert list(guard.sources) == gates[:-1]
    for image in images((1, 128, 128)):
        assert (evaluate(compiled.program, compiled.weights, image)[guard.name] < 0).all()


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)], "MaxPool2d"),
        ([nn.Conv2d(1, 2, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(72, 2)], "ReLU6"),
        ([nn.Conv2d(1, 2, 3), nn.Sigmoid()], "Sigmoid"),
        ([nn.Conv2d(1, 2, 3, dilation=2)], "Conv2d"),
        ([nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")], "Conv2d"),
        ([nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)], "BatchNorm2d"),
        ([nn.ReLU(), nn.Conv2d(1, 2, 3)], "ReLU"),
        ([nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(2)], "AdaptiveAvgPool2d"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(layers, named):
    with pytest.raises(ConfigError, match=named) as caught:
        compile_network(nn.Sequential(*layers).eval(), images((1, 8, 8)))
    assert caught.value.code == "unsupported-module"


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ConfigError):
        compile_network(nn.Sequential(nn.Conv2d(1, 2, 3)).train(), images((1, 8, 8)))
