"""A compiled network computes what the module computes, and what cannot be compiled is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18 as with_batch_norm

from dicom_node.core.errors import ConfigError, Refused
from secure_infer.clear import PlaintextEngine, evaluate
from secure_infer.compile import compile_network
from secure_infer.engine import input_of
from secure_infer.networks import SmallCNN, lite0_suffix
from secure_infer.program import GuardLayer, ReluLayer
from secure_infer.protocol.plan import Plan
from secure_infer.trunks import LITE0
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
    """ResNet-18 as torchvision makes it, with BatchNorm and max-pooling."""
    return with_batch_norm(weights=None, num_classes=3)


class Bottleneck(nn.Module):
    """An inverted residual with a linear bottleneck (Sandler et al. 2018), to which its input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.expand, self.norm = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 5, padding=2, groups=wide)
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = functional.relu6(self.norm(self.expand(x)))
        return self.project(torch.clamp(self.depthwise(found), 0, max=6)) + x


def ending(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 3)]


def pooled(before: list[nn.Module], after: list[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *before, nn.MaxPool2d(3, 2, 1), *after, *ending(4))


#: Small networks for images (2, 11, 11), each with what the others have not.
SMALL = {
    "max-pool behind ReLU": lambda: pooled([nn.ReLU()], [nn.Conv2d(4, 4, 3), nn.ReLU()]),
    "max-pool behind ReLU6": lambda: pooled([nn.BatchNorm2d(4), nn.ReLU6()], []),
    "max-pool alone": lambda: pooled([], [nn.Conv2d(4, 4, 1), nn.ReLU()]),
    "max-pool twice": lambda: pooled([nn.ReLU()], [nn.MaxPool2d((2, 3), (1, 2))]),
    "max-pool of means": lambda: pooled([nn.ReLU(), nn.AvgPool2d(2)], [nn.Conv2d(4, 4, 1), nn.ReLU6()]),
    "bottlenecks": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), Bottleneck(3), Bottleneck(3), *ending(3)),
    "ReLU6 of means": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(3, 1), nn.ReLU6(), *ending(4)),
}


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
    for image in (sample[1], sample[0] * 0 + 1, -sample[0]):
        opened = trio.ask(image).reshape(-1)
        trio.transcript.clear()
        assert np.abs(opened - logits(network, image)).max() < 1e-3
    with pytest.raises(Refused):
        input_of(compiled.program, sample[0] * 100)


#: With their rings: 32 bits are too few for the others.
BOTH = [(name, 64) for name in SMALL] + [(name, 32) for name in SMALL if name.startswith("max-pool")]


def scaled(name: str, size: float) -> nn.Module:
    """A small network whose values reach past the ceiling of ReLU6."""
    network = trained(SMALL[name](), (2, 11, 11))
    with torch.no_grad():
        network[0].weight.mul_(size)
    return network


@pytest.mark.parametrize(("name", "bits"), BOTH)
def test_a_small_network_gives_the_modules_logits_in_both_rings(name, bits):
    network = scaled(name, 10.0 if bits == 64 else 1.0)
    compiled = compile_network(network, images((2, 11, 11)), bits)
    trio = Trio(compiled.program, compiled.weights)
    worst = 0.0
    for image in images((2, 11, 11), 4, seed=9):
        worst = max(worst, float(np.abs(trio.ask(image).reshape(-1) - logits(network, image)).max()))
    assert worst < (1e-3 if bits == 64 else 0.05)


def adversarial(shape: tuple[int, int, int], bound: float) -> list[np.ndarray]:
    """All white, noise and a chessboard, from the ordinary to the largest that may enter and beyond."""
    noise = np.random.default_rng(11).normal(size=shape)
    board = np.indices(shape).sum(axis=0) % 2 * 2.0 - 1.0
    patterns = (np.ones(shape), -np.ones(shape), noise / np.abs(noise).max(), np.sign(noise), board)
    return [pattern * size for pattern in patterns for size in (1.0, bound / 2, bound * 0.999, bound * 1.25)]


@pytest.mark.parametrize(("name", "bits"), BOTH)
def test_an_adversarially_large_input_is_right_or_refused(name, bits):
    network = scaled(name, 10.0 if bits == 64 else 1.0)
    compiled = compile_network(network, images((2, 11, 11)), bits)
    trio = Trio(compiled.program, compiled.weights)
    right = refused = 0
    for image in adversarial((2, 11, 11), compiled.program.input_bound):
        try:
            opened = trio.ask(input_of(compiled.program, image)).reshape(-1)
        except Refused:
            refused += 1
            continue
        expected = logits(network, image)
        # Weights are rounded: the error grows with the input.
        assert np.abs(opened - expected).max() < (1e-3 if bits == 64 else 0.1) * (1 + np.abs(expected).max())
        right += 1
    assert right >= 5
    assert refused >= 5


def test_a_guarded_network_is_right_or_refuses_whatever_its_size():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    for _ in range(8):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    for layer in layers[::2]:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    network = nn.Sequential(*layers, *ending(8)).eval()
    compiled = compile_network(network, images((2, 32, 32)))
    assert compiled.program.guard
    trio = Trio(compiled.program, compiled.weights)
    verdicts = []
    for image in adversarial((2, 32, 32), compiled.program.input_bound):
        try:
            opened = trio.ask(input_of(compiled.program, image)).reshape(-1)
        except Refused:
            verdicts.append("refused")
            continue
        expected = logits(network, image)
        assert np.abs(opened - expected).max() < 1e-3 * (1 + np.abs(expected).max())
        verdicts.append("right")
    # The last size of each pattern is refused for its largest value, others by the guard, to which sums of small images
    # are too small: it sees them in steps of 4096.
    assert verdicts.count("refused") > 5
    assert verdicts.count("right") >= 5


def test_a_network_too_deep_for_32_bits_is_refused_with_the_advice_to_take_64():
    with pytest.raises(ConfigError, match="take a ring of 64 bits") as caught:
        compile_network(trained(SmallCNN(), (1, 128, 128)), images((1, 128, 128)), 32)
    assert caught.value.code == "ring-overflow"


def test_an_image_beyond_the_norm_that_was_proven_is_refused_before_it_is_shared():
    compiled = compile_network(scaled("max-pool alone", 1.0), images((2, 11, 11)), 32)
    image = images((2, 11, 11), 1)[0]
    input_of(compiled.program, image)
    with pytest.raises(Refused) as caught:
        input_of(compiled.program, np.full_like(image, compiled.program.input_bound))
    assert caught.value.code == "features-out-of-range"


@pytest.mark.parametrize("bits", [64, 32])
def test_the_hospital_learns_no_more_bits_of_the_output_than_asked_for(bits):
    network = scaled("bottlenecks" if bits == 64 else "max-pool alone", 1.0)
    compiled = compile_network(network, images((2, 11, 11)), bits, output_fraction_bits=4)
    trio = Trio(compiled.program, compiled.weights)
    image = images((2, 11, 11), 1, seed=3)[0]
    opened = np.stack([trio.ask(image).reshape(-1) for _ in range(100)])
    expected = logits(network, image)
    assert (opened * 16 == np.rint(opened * 16)).all()
    # Rounded up or down by chance, with the right mean.
    assert np.abs(opened - expected).max() < 1 / 16 + 0.05 * (bits == 32)
    assert np.abs(opened.mean(axis=0) - expected).max() < 0.03 + 0.05 * (bits == 32)


@pytest.mark.parametrize("cut", [None, "block14"])
def test_the_private_stages_of_efficientnet_compile_wherever_they_begin(cut):
    network = lite0_suffix(cut).eval()
    stage = LITE0.stages[LITE0.names.index(cut)] if cut else None
    shape = (stage.channels_out, stage.side, stage.side) if stage else (1, 224, 224)
    with torch.no_grad():
        network.dense.weight.normal_(0, 0.05)
    compiled = compile_network(network, images(shape, 1))
    assert compiled.program.guard is None  # its ceilings prove enough
    image = images(shape, 1, seed=5)[0]
    found = PlaintextEngine(compiled.program, compiled.weights).infer(image).logits
    assert np.abs(found - logits(network, image)).max() < 1e-3


def test_the_max_pool_before_the_relu_leaves_it_a_quarter_of_the_values():
    compiled = compile_network(scaled("max-pool behind ReLU", 1.0), images((2, 11, 11)))
    gates = Plan(compiled.program).gates
    # Two comparisons for each of 11 x 6 columns, then for each of 6 x 6 rows, then the ReLU on these, in 4 channels.
    assert [gate.size // 4 for gate in list(gates.values())[:5]] == [66, 66, 36, 36, 36]


def test_the_engine_in_the_clear_gives_the_modules_logits():
    network = trained(SmallCNN(), (1, 128, 128))
    compiled = compile_network(network, images((1, 128, 128)))
    image = images((1, 128, 128), 1, seed=4)[0]
    found = PlaintextEngine(compiled.program, compiled.weights).infer(image)
    assert np.abs(found.logits - logits(network, image)).max() < 1e-5


def test_the_guard_of_a_compiled_network_covers_every_gate_but_the_last_and_takes_its_turns_with_that_one():
    compiled = compile_network(trained(SmallCNN(), (1, 128, 128)), images((1, 128, 128)))
    *before, gate, last = (layer.name for layer in compiled.program.layers if isinstance(layer, ReluLayer))
    assert gate == compiled.program.guard
    guard = next(layer for layer in compiled.program.layers if isinstance(layer, GuardLayer))
    assert list(guard.sources) == before
    assert Plan(compiled.program).rounds[-1] == [gate, last]
    for image in images((1, 128, 128)):
        assert (evaluate(compiled.program, compiled.weights, image)[guard.name] < 0).all()


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True)], "MaxPool2d"),
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, dilation=2)], "MaxPool2d"),
        ([nn.Conv2d(1, 2, 3), nn.Hardtanh(0, 3)], "Hardtanh"),
        ([nn.Conv2d(1, 2, 3), nn.ReLU()], "end in weights"),
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
