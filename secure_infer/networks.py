"""Networks whose private part is evaluated under encryption as a whole, in a form that DP-SGD can train.

No layer normalises over a batch, which would mix patients: ResNet-18 (He et al. 2016, arXiv 1512.03385) standardises
its weights in place of its activations (Brock et al. 2021, arXiv 2101.08692), the small network does without, and the
last stages of EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946) start from public weights that their BatchNorm was
folded into. Pooling is by the mean, unless the maximum is asked for: it costs a comparison for each pair of values.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, ResNet

from .network import DIVISOR, OFFSET, FoldedConvolution, InvertedResidual, build
from .trunks import LITE0

CLASSES: Final = 3
#: What keeps the variance of standardised weights' outputs behind a ReLU at 1: sqrt(2 / (1 - 1 / pi)).
RELU_GAIN = 1.7139588594436646
#: How strong a residual branch is at first (Brock et al. 2021, section 3).
BRANCH_GAIN = 0.2
#: Variances of a row of weights below this are not stretched.
LEAST_VARIANCE = 1e-4
#: The public stage before the private ones, where nothing else is said.
CUT = "block14"


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and a learned length for each output channel: `gain` (out_channels,).

    What it computes is a plain convolution with other numbers, so it costs nothing under encryption; see `plain`.
    """

    def __init__(self, given: int, out: int, kernel: int, **options: Any) -> None:
        super().__init__(given, out, kernel, **options)
        self.gain = nn.Parameter(torch.full((out,), RELU_GAIN))

    def standardised(self) -> Tensor:
        """Return the weights that are in effect, shape (out, in / groups, kernel, kernel)."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        length = torch.rsqrt((variance * self.weight[0].numel()).clamp_min(LEAST_VARIANCE))
        return (self.weight - mean) * (length * self.gain[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (batch, channels, rows, columns)."""
        return functional.conv2d(
            x, self.standardised(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def plain(self) -> nn.Conv2d:
        """Return the plain convolution that computes the same."""
        return convolution(
            self.standardised().detach(),
            None if self.bias is None else self.bias.detach(),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )


def plain(network: nn.Module) -> nn.Module:
    """Copy a network with all standardised convolutions as plain ones."""
    found = copy.deepcopy(network)
    for name, module in list(found.named_modules()):
        if isinstance(module, StandardisedConv2d):
            found.set_submodule(name, module.plain())
    return found


def convolution(weight: Tensor, bias: Tensor | None, **options: Any) -> nn.Conv2d:
    """Make a trainable convolution of given weights, shape (out, in / groups, rows, columns)."""
    groups = int(options.get("groups", 1))
    made = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (int(weight.shape[2]), int(weight.shape[3])),
        bias=bias is not None,
        **options,
    )
    made.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made


class Block(BasicBlock):  # type: ignore[misc]  # torchvision is untyped
    """ResNet's basic block without operations in place, which hooks for gradients of single patients do not bear."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels_in, rows, columns) to (batch, channels_out, rows', columns')."""
        kept = x if self.downsample is None else self.downsample(x)
        found: Tensor = functional.relu(self.conv2(functional.relu(self.conv1(x))) + kept)
        return found


def resnet18(channels: int = 3, pooling: Literal["average", "max"] = "average", classes: int = CLASSES) -> nn.Module:
    """Build ResNet-18 with standardised weights, everything private; input (channels, 224, 224).

    Parameters
    ----------
    channels : int
        1 for grey, 3 for three equal channels.
    pooling : str
        Of the stem, 3 x 3 with stride 2.
    classes : int
    """
    network: nn.Module = ResNet(Block, [2, 2, 2, 2], num_classes=classes, norm_layer=nn.Identity)
    network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3)
    network.relu = nn.ReLU()
    network.maxpool = (nn.AvgPool2d if pooling == "average" else nn.MaxPool2d)(3, stride=2, padding=1)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            made = StandardisedConv2d(
                module.in_channels,
                module.out_channels,
                int(module.kernel_size[0]),
                stride=module.stride,
                padding=module.padding,
                bias=False,
            )
            made.bias = nn.Parameter(torch.zeros(made.out_channels))
            if name == "conv1":
                nn.init.ones_(made.gain)  # no ReLU stands before it
            elif name.endswith("conv2"):
                made.gain.data.mul_(BRANCH_GAIN)
            network.set_submodule(name, made)
    return network


class SmallCNN(nn.Module):
    """Five convolutions without normalisation, about 70 000 parameters; input (1, 128, 128)."""

    def __init__(self, classes: int = CLASSES, channels: tuple[int, ...] = (16, 32, 32, 64, 64)) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (given, out) in enumerate(zip((1, *channels), channels, strict=False)):
            layer = nn.Conv2d(given, out, 3, stride=1 if number == len(channels) - 1 else 2, padding=1)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # torch's own start fades with every layer
            layers[f"conv{number}"] = layer
            layers[f"relu{number}"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        found: Tensor = self.head(self.pool(self.features(image)).flatten(1))
        return found


class Residual(nn.Module):
    """Adds its input to what its layers give."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, channels, rows, columns)."""
        found: Tensor = self.layers(x) + x
        return found


def _trainable(stage: nn.Module) -> nn.Module:
    """Make plain, trainable modules of a stage of the public trunk; they compute the same."""
    if isinstance(stage, InvertedResidual):
        layers = nn.Sequential(*(_trainable(one) for one in stage.layers))
        return Residual(layers) if stage.residual else layers
    if not isinstance(stage, FoldedConvolution):
        raise TypeError(f"no stage of the trunk is a {type(stage).__name__}")
    weight, padding = stage.weight, stage.padding
    if stage.uneven:
        # A pixel more at the end than at the start is an even padding with one more row and column of zero weights.
        before, padding = stage.uneven
        weight = functional.pad(weight, (padding - before, 0) * 2)
    made = convolution(weight, stage.bias, stride=stage.stride, padding=padding, groups=stage.groups)
    return nn.Sequential(made, nn.ReLU6()) if stage.active else made


def lite0_suffix(cut: str | None = CUT, classes: int = CLASSES) -> nn.Module:
    """Build the private last stages of EfficientNet-Lite0, from public weights, and a head that starts at zero.

    Parameters
    ----------
    cut : str or None
        The last public stage, of `trunks.LITE0`: its output, without pooling, is the input. None makes the whole
        network private; its input is then one grey channel, (1, 224, 224).
    classes : int
    """
    stages = build(LITE0, LITE0.checkpoint())
    after = 0 if cut is None else LITE0.names.index(cut) + 1
    layers = OrderedDict((name, _trainable(stages[name])) for name in LITE0.names[after:])
    head = nn.Linear(LITE0.stages[-1].channels_out, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(
        OrderedDict([*layers.items(), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("dense", head)])
    )


@dataclass(frozen=True)
class Architecture:
    """A network that can be trained and published by its name.

    Attributes
    ----------
    build : callable
        Makes the private part with its first weights.
    side : int
        Rows and columns of the image, 224 or 128.
    offset, divisor : float
        What is taken from the grey value 0..255, and what it is then divided by: public constants, not the data's.
    cut : str or None
        The last public stage of the trunk; None where everything is private.
    """

    build: Callable[[], nn.Module]
    side: Literal[128, 224]
    offset: float
    divisor: float
    cut: str | None = None


#: Mean and spread of ImageNet's grey values, which are public.
GREY = (114.5, 57.6)
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "small-cnn": Architecture(SmallCNN, 128, *GREY),
        "resnet18": Architecture(lambda: resnet18(channels=1), 224, *GREY),
        "resnet18-max": Architecture(lambda: resnet18(channels=1, pooling="max"), 224, *GREY),
        "efficientnet-lite0": Architecture(lite0_suffix, 224, OFFSET, DIVISOR, CUT),
    }
)
