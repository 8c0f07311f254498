"""The networks that `tests.bench.mpc` measures: as torch modules, and as signed models of a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import secure_infer
from secure_infer.card import ModelCard
from secure_infer.compile import compile_network
from secure_infer.models import ModelStore
from secure_infer.networks import CUT, SmallCNN, lite0_suffix, resnet18
from secure_infer.trunks import LITE0
from tests.secure_infer.small_model import publish
from tests.secure_infer.test_compile import images, trained
from tests.system.roles import features

#: What the public stages of EfficientNet-Lite0 give.
CUT_SHAPE = next((one.channels_out, one.side, one.side) for one in LITE0.stages if one.name == CUT)


@dataclass(frozen=True)
class Subject:
    """One network in the forms that the bench needs.

    Attributes
    ----------
    module : nn.Module
        In evaluation mode, from (1, *sample.shape) to logits.
    samples : ndarray, shape (count, channels, rows, columns)
        Inputs of the module and of the program.
    card : ModelCard
        Of the same network in the store.
    """

    module: nn.Module
    samples: np.ndarray
    card: ModelCard

    def plain(self, number: int) -> np.ndarray:
        """Evaluate in the clear."""
        with torch.no_grad():
            return self.module(torch.from_numpy(self.samples[number][None]).float()).numpy()[0]


def _compiled(make: Callable[[], nn.Module], shape: tuple[int, int, int], name: str) -> Callable[[Path, int], Subject]:
    def build(store: Path, count: int) -> Subject:
        module = trained(make(), shape)
        compiled = compile_network(module, images(shape))
        card = publish(store, compiled.program, compiled.weights, version=name.replace("_", "-"))
        samples = images(shape, count, seed=7)
        return Subject(module, samples, card)

    return build


def _suffix() -> nn.Module:
    """EfficientNet-Lite0 from its private cut on; its head begins at zero, which would show no error."""
    network = lite0_suffix()
    nn.init.normal_(network.get_submodule("dense").weight, std=0.05)
    return network


def _shipped(store: Path, count: int) -> Subject:
    """The private head of the model that comes with the package, on features of its public part's shape."""
    source = Path(secure_infer.__file__).parent / "shipped"
    shipped = ModelStore(source)
    version = shipped.versions()[-1]
    card, weights = shipped.card(version), shipped.weights(version)
    shutil.copytree(source / version, store / version)
    (layer,) = card.suffix.layers
    # The same for torch and CrypTen: a convolution over the positions, then the mean.
    head = nn.Conv2d(card.suffix.input_shape[0], layer.out_channels, 1)
    head.weight.data = torch.from_numpy(weights[f"{layer.name}.weight"]).float()
    head.bias.data = torch.from_numpy(weights[f"{layer.name}.bias"]).float()
    module = nn.Sequential(head, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    samples = np.stack([features(seed, card.suffix) for seed in range(count)])
    return Subject(module, samples, card)


#: By name: how to build it with so many samples, and how many queries are timed.
NETWORKS: dict[str, tuple[Callable[[Path, int], Subject], int]] = {
    "default": (_shipped, 50),
    "smallcnn_128": (_compiled(SmallCNN, (1, 128, 128), "smallcnn_128"), 50),
    "effnetlite0": (_compiled(_suffix, CUT_SHAPE, "effnetlite0"), 20),
    "resnet18_224": (_compiled(resnet18, (3, 224, 224), "resnet18_224"), 9),
    "resnet18_224_maxpool": (_compiled(partial(resnet18, pooling="max"), (3, 224, 224), "resnet18_224_maxpool"), 7),
}
