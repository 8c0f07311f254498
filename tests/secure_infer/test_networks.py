"""The networks that can be private: standardised weights are plain ones, and the trunk may be cut anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secure_infer.network import Trunk
from secure_infer.networks import ARCHITECTURES, SmallCNN, StandardisedConv2d, lite0_suffix, plain, resnet18
from secure_infer.public import Greys
from secure_infer.trunks import LITE0


def parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return Trunk()


def test_a_standardised_convolution_is_a_plain_one_whose_weights_do_not_know_their_own_scale() -> None:
    torch.manual_seed(0)
    layer = StandardisedConv2d(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(layer.plain()(x), layer(x))
    assert type(layer.plain()) is nn.Conv2d
    before = layer(x).detach()
    with torch.no_grad():
        layer.weight.mul_(3.0).add_(1.0)
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-4)


def test_standardised_weights_keep_the_size_of_activations_through_eighteen_layers() -> None:
    torch.manual_seed(0)
    network = resnet18(channels=1)
    sizes = []
    for name, module in network.named_modules():
        if name.startswith("layer") and name.count(".") == 1:
            module.register_forward_hook(lambda _module, _given, out: sizes.append(float(out.detach().std())))
    network(torch.randn(2, 1, 128, 128))
    assert len(sizes) == 8
    assert min(sizes) > 0.1
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_resnet18_takes_grey_or_three_equal_channels(channels: int, pooling: str) -> None:
    network = resnet18(channels=channels, pooling=pooling)
    assert network(torch.zeros(1, channels, 224, 224)).shape == (1, 3)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.GroupNorm) for module in network.modules())
    # torchvision's, with a gain where BatchNorm had two parameters, and biases
    assert parameters(network) == pytest.approx(11.18e6, rel=0.01)


def test_the_small_network_has_70_thousand_parameters() -> None:
    assert parameters(SmallCNN()) == 69_667


@pytest.mark.parametrize("cut", [None, *LITE0.names])
def test_public_prefix_and_private_suffix_are_the_whole_trunk_at_any_cut(trunk: Trunk, cut: str | None) -> None:
    x = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        whole = trunk.run(x)["head"].mean((2, 3))
        suffix = lite0_suffix(cut)
        found = suffix[:-1](x if cut is None else trunk.run(x, last=cut)[cut])
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)
    assert all(one.requires_grad for one in suffix.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_making_a_network_plain_leaves_the_original_as_it_was(name: str) -> None:
    network = ARCHITECTURES[name].build()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    made = plain(network)
    assert not any(isinstance(module, StandardisedConv2d) for module in made.modules())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_the_image_itself_is_resampled_and_scaled_by_public_constants() -> None:
    image = np.full((224, 224), 0.6, dtype=np.float32)
    image[:, :112] = 0.2
    found = Greys(side=128, channels=3, offset=100.0, divisor=50.0).features(image)
    assert found.shape == (3, 128, 128)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[0, :, :60], (0.2 * 255 - 100) / 50, atol=1e-5)
    np.testing.assert_allclose(found[0, :, 70:], (0.6 * 255 - 100) / 50, atol=1e-5)
    same = Greys(side=224, channels=1, offset=0.0, divisor=255.0).features(image)
    np.testing.assert_allclose(same[0], image, atol=1e-6)
    with pytest.raises(ValueError, match="224"):
        Greys(side=128, channels=1, offset=0.0, divisor=255.0).features(image[:100])
