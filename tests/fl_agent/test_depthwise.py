"""Gradients of depthwise convolutions: Opacus's own, without what it drops."""

from __future__ import annotations

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from fl_agent.train import ImageGradients

LAYERS = [
    pytest.param(lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), id="3x3"),
    pytest.param(lambda: nn.Conv2d(6, 6, 5, padding=2, stride=2, groups=6), id="5x5, stride 2"),
    pytest.param(lambda: nn.Conv2d(6, 6, (3, 5), padding=(0, 2), stride=(1, 3), groups=6, bias=False), id="uneven"),
    pytest.param(lambda: nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6), id="dilated"),
    pytest.param(lambda: nn.Conv2d(6, 6, 3, groups=3), id="groups of two"),
    pytest.param(lambda: nn.Conv2d(6, 12, 3, groups=6), id="two for each channel"),
    pytest.param(lambda: nn.Conv2d(6, 4, 3, padding="same"), id="not grouped"),
]


def gradients(wrap: type[GradSampleModule], layer: nn.Module, images: Tensor) -> list[Tensor]:
    wrapped = wrap(layer, loss_reduction="sum")
    torch.sin(wrapped(images)).sum().backward()
    found = [one.grad_sample for one in wrapped.parameters() if one.requires_grad]
    wrapped.remove_hooks()
    wrapped.zero_grad()
    return found


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_each_image_has_the_gradient_that_autograd_gives_it(make) -> None:
    torch.manual_seed(1)
    layer, images = make().double(), torch.randn(4, 6, 11, 10, dtype=torch.float64)
    found = gradients(ImageGradients, layer, images)
    for number, image in enumerate(images):
        wanted = torch.autograd.grad(torch.sin(layer(image[None])).sum(), list(layer.parameters()))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[number], other)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_what_is_frozen_has_none_and_nobody_has_an_empty_one() -> None:
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    layer.bias.requires_grad_(False)
    (weight,) = gradients(ImageGradients, layer, torch.randn(0, 6, 8, 8))
    assert weight.shape == (0, 6, 1, 3, 3)


def test_other_users_of_opacus_in_the_process_keep_its_own() -> None:
    assert GradSampleModule.GRAD_SAMPLERS[nn.Conv2d] is not ImageGradients.GRAD_SAMPLERS[nn.Conv2d]
    assert set(GradSampleModule.GRAD_SAMPLERS) == set(ImageGradients.GRAD_SAMPLERS)
