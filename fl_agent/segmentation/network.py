"""A segmentation network without normalisation, by sub-pixel convolution (Shi et al. 2016, arXiv 1609.05158).

Its last convolution gives, at each place of a coarse grid, the logits of 8 x 8 pixels. So all private layers are
convolutions and ReLUs, which compile for encrypted evaluation; to put pixels in their places is public and free.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

#: Pixels to a place of the coarse grid, in each direction.
SCALE: Final = 8
CHANNELS: Final = (16, 32, 32, 32)
Masks = NDArray[np.bool_]


def build(channels: tuple[int, ...] = CHANNELS) -> nn.Sequential:
    """Make an untrained network, from (images, 1, side, side) to (images, SCALE², side / SCALE, side / SCALE)."""
    layers: list[nn.Module] = []
    given = 1
    for number, out in enumerate(channels):
        layer = nn.Conv2d(given, out, 3, stride=2 if number < 3 else 1, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layers += [layer, nn.ReLU()]
        given = out
    return nn.Sequential(*layers, nn.Conv2d(given, SCALE**2, 3, padding=1))


def pixels(grid: Tensor) -> Tensor:
    """Put the logits of a coarse grid in their places: shape (images, side, side)."""
    found: Tensor = functional.pixel_shuffle(grid, SCALE)[:, 0]
    return found


def segmentation_loss(grid: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each image's pixels plus its soft Dice loss (Milletari et al. 2016), SUMMED over patients.

    Parameters
    ----------
    grid : Tensor
        As the network gives it.
    masks : Tensor of uint8, shape (images, side, side)
    weights : Tensor of float32, shape (images,)
        Of an image within its patient.
    """
    logits, truth = pixels(grid), masks.to(grid.dtype)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    shown = torch.sigmoid(logits)
    # One pixel more on both sides: a picture without opacity has a Dice loss, too.
    overlap = (2 * (shown * truth).sum((1, 2)) + 1) / (shown.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return ((entropy + 1 - overlap) * weights).sum()


def segment(network: nn.Module, pictures: NDArray[np.uint8]) -> Masks:
    """Say where an opacity is at least as likely as not, in the clear; shape (images, side, side)."""
    network.eval()
    with torch.no_grad():
        found: Masks = (pixels(network(inputs_of(torch.from_numpy(pictures)))) > 0).numpy()
    return found


def inputs_of(pictures: Tensor) -> Tensor:
    """Bring grey pictures 0..255, shape (images, side, side), to what the network takes."""
    return (pictures.float() - 127.5)[:, None] / 64.0


def dice(found: Masks, truth: Masks) -> NDArray[np.float64]:
    """Dice coefficient of each image, 0..1; 1 where nothing is there and nothing was found."""
    both, either = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
    return np.where(either, 2 * both / np.maximum(either, 1), 1.0)


def iou(found: Masks, truth: Masks) -> NDArray[np.float64]:
    """Intersection over union of each image (Jaccard), 0..1; 1 where both are empty."""
    both, either = (found & truth).sum((1, 2)), (found | truth).sum((1, 2))
    return np.where(either, both / np.maximum(either, 1), 1.0)
