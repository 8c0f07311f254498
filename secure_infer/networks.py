"""Networks that are evaluated under encryption as a whole: ResNet-18 (He et al. 2016) and a small norm-free CNN."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models import resnet18 as torchvision_resnet18


def resnet18(classes: int = 3) -> nn.Module:
    """ResNet-18 with average pooling in place of max-pooling, which would cost a comparison for each pair of values."""
    network: nn.Module = torchvision_resnet18(weights=None, num_classes=classes)
    network.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    return network


class SmallCNN(nn.Module):
    """Five convolutions without normalisation, about 70 000 parameters; input (1, 128, 128)."""

    def __init__(self, classes: int = 3, channels: tuple[int, ...] = (16, 32, 32, 64, 64)) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (given, out) in enumerate(zip((1, *channels), channels, strict=False)):
            layers[f"conv{number}"] = nn.Conv2d(
                given, out, 3, stride=1 if number == len(channels) - 1 else 2, padding=1
            )
            layers[f"relu{number}"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        found: Tensor = self.head(self.pool(self.features(image)).flatten(1))
        return found
