"""Gradient inversion: what a hospital's update shows of its films (Geiping et al. 2020, arXiv 2003.14053).

The attacker knows the network, its weights and the labels, and looks for the films whose gradient points where the
update points: the cosine distance to it, plus the total variation of the films, is least. Of a layer that sees the film
itself no search is needed: its gradient IS the film, times a number (Phong et al. 2018; Geiping et al., section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from fl_agent.trainset import read_image, read_manifest

Picture = NDArray[np.float32]


def films(data: Path, count: int, side: int, seed: int = 0) -> NDArray[np.float32]:
    """Some X-rays of the training split, one of each patient, made small; shape (count, side, side), 0..1."""
    folder = data / "kermany224"
    known = read_manifest(folder, "train")
    _, first = np.unique(known.patients, return_index=True)
    chosen = np.random.default_rng(seed).permutation(first)[:count]
    return np.stack([shrunk(read_image(folder, known, int(one)), side) for one in chosen])


def shrunk(picture: Picture, side: int) -> Picture:
    resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float32)


class SmallNetwork(nn.Module):
    """Three convolutions and a linear layer, on which inversion is known to work (Zhu et al. 2019, LeNet)."""

    def __init__(self, side: int, channels: int = 12, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for given, stride in ((1, 2), (channels, 2), (channels, 1)):
            layers += [nn.Conv2d(given, channels, 5, stride, 2), nn.Sigmoid()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels * (side // 4) ** 2, 3)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=random)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(images).flatten(1))
        return found


class Dense(nn.Module):
    """A network whose first layer sees all of the film at once."""

    def __init__(self, side: int, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.first, self.last = nn.Linear(side * side, 32), nn.Linear(32, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.05, generator=random)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.first(images.flatten(1))))
        return found


def gradient(network: nn.Module, images: Tensor, labels: Tensor, *, search: bool = False) -> list[Tensor]:
    """The mean gradient of a batch, one tensor for each parameter; differentiable where a search needs that."""
    loss = functional.cross_entropy(network(images), labels)
    return list(torch.autograd.grad(loss, list(network.parameters()), create_graph=search))


def distance(found: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    """1 - cosine of two gradients."""
    inner = sum((a * b).sum() for a, b in zip(found, seen, strict=True))
    lengths = [torch.sqrt(sum((one**2).sum() for one in gradients)) for gradients in (found, seen)]
    return 1 - inner / (lengths[0] * lengths[1] + 1e-30)


def variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def invert(
    network: nn.Module,
    seen: Sequence[Tensor],
    labels: Tensor,
    side: int,
    *,
    steps: int,
    smooth: float = 1e-3,
    rate: float = 0.03,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Look for the films that explain an update: signed Adam steps from noise, the rate falling as in the paper.

    Parameters
    ----------
    network : Module
        At the weights that the update is relative to.
    seen : sequence of Tensor
        The update, as a gradient.
    labels : Tensor, shape (films,)
    side : int
    steps : int
    smooth : float
        Weight of the total variation.
    rate : float
        Of the first steps.
    seed : int

    Returns
    -------
    ndarray of float32, shape (films, side, side)
        0..1
    """
    start = torch.rand(len(labels), 1, side, side, generator=torch.Generator().manual_seed(seed))
    images = start.requires_grad_()
    optimiser = torch.optim.Adam([images], lr=rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [steps * part // 8 for part in (3, 5, 7)], gamma=0.1)
    best, least = images.detach().clone(), float("inf")
    for _ in range(steps):
        loss = distance(gradient(network, images, labels, search=True), seen) + smooth * variation(images)
        (found,) = torch.autograd.grad(loss, [images])
        images.grad = found.sign()
        if loss.item() < least:
            best, least = images.detach().clone(), loss.item()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return best[:, 0].numpy()


def read_off(seen: Sequence[Tensor], side: int) -> Picture:
    """Read a film from the gradient of a `Dense` network: the row of weights whose bias says most, over that bias."""
    weight, bias = seen[0], seen[1]
    row = int(bias.abs().argmax())
    return (weight[row] / bias[row]).reshape(side, side).numpy()


def similarity(one: Picture, other: Picture) -> float:
    """Mean structural similarity (Wang et al. 2004), Gaussian windows of 1.5 pixels, values 0..1; 1 is the same."""

    def near(plane: Picture) -> NDArray[np.float64]:
        return gaussian_filter(plane.astype(np.float64), 1.5, truncate=3.5)

    mean_one, mean_other = near(one), near(other)
    spread_one, spread_other = near(one**2) - mean_one**2, near(other**2) - mean_other**2
    together = near(one * other) - mean_one * mean_other
    means = (2 * mean_one * mean_other + 0.01**2) / (mean_one**2 + mean_other**2 + 0.01**2)
    spreads = (2 * together + 0.03**2) / (spread_one + spread_other + 0.03**2)
    return float((means * spreads).mean())


def stretched(picture: Picture) -> Picture:
    """Bring a picture of any scale to 0..1, as a viewer would show it."""
    low, high = np.percentile(picture, [0.5, 99.5])
    return np.clip((picture - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)


def rank(found: Picture, true: int, gallery: NDArray[np.float32]) -> int:
    """Place of the true film among a gallery, by likeness to what was found; 1 is the most like it.

    All chests are alike, so what is compared is how each differs from their mean: correlation after brightness and the
    mean film are taken out of both sides. For noise every place is as likely.
    """
    flat = gallery.reshape(len(gallery), -1).astype(np.float64)
    common, _ = np.linalg.qr(np.stack([np.ones(flat.shape[1]), flat.mean(0)], axis=1))

    def apart(planes: NDArray[np.float64]) -> NDArray[np.float64]:
        rest = planes - planes @ common @ common.T
        return rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12)

    likeness = apart(flat) @ apart(found.reshape(1, -1).astype(np.float64))[0]
    return int((likeness > likeness[true]).sum()) + 1
