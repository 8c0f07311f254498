"""The public trunk, of `trunks`, with its BatchNorm folded away.

The hospital runs these layers in the clear: they are ImageNet weights that anybody can download. What comes out enters
the private head, which is linear at each of the 7 x 7 positions, so the same encrypted product gives the logits (the
mean over positions) and a 7 x 7 map of evidence. The image's quarters may have weights of their own. The network is a
list of named stages, so that a model may cut it earlier and keep any suffix private.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dicom_node.core.errors import ConfigError
from dicom_node.pixels import INPUT_SIZE

from .card import Regions, Side, TrunkName, TrunkSetup
from .regions import shares
from .trunks import TRUNKS, TrunkSpec

#: Side of the grid of positions that enters the private head.
GRID = 7
#: Variance floor of the BatchNorm layers, as they were trained (TensorFlow's EfficientNet).
EPSILON = 1e-3
#: The checkpoint's own input scale (TensorFlow "Lite" models).
OFFSET, DIVISOR = 127.0, 128.0
#: Features beyond this are clipped, so that fixed-point arithmetic has a proven range on any image.
FEATURE_BOUND = 16.0
#: Pooled vectors shorter than this (a blank image) are not stretched to unit length.
LEAST_NORM = 1e-3


class FoldedConvolution(nn.Module):
    """A convolution that its BatchNorm was folded into, with TensorFlow's SAME padding and an optional ReLU6.

    Parameters
    ----------
    weight : Tensor, shape (out, in / groups, kernel, kernel)
    bias : Tensor, shape (out,)
    stride, groups : int
    active : bool
        Whether ReLU6 follows.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, groups: int = 1, active: bool = True) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.float())
        self.stride, self.groups, self.active = stride, groups, active
        extra = int(weight.shape[-1]) - stride
        # TensorFlow puts the odd pixel of an uneven padding at the end; a symmetric padding moves every feature.
        self.uneven = (extra // 2, extra - extra // 2) if stride > 1 else None
        self.padding = 0 if self.uneven else extra // 2

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (batch, channels, rows, columns)."""
        if self.uneven:
            x = functional.pad(x, self.uneven * 2)
        x = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return functional.relu6(x, inplace=True) if self.active else x


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; the input is added where the shape is kept."""

    def __init__(self, layers: Sequence[FoldedConvolution], *, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels_in, rows, columns) to (batch, channels_out, rows', columns')."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def fold(weights: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Fold a BatchNorm into the bias-free convolution before it.

    Parameters
    ----------
    weights : mapping of Tensor
        The checkpoint.
    convolution, norm : str
        Prefixes of the two layers' keys.

    Returns
    -------
    weight : Tensor of float64, shape (out, in / groups, kernel, kernel)
    bias : Tensor of float64, shape (out,)
    """
    gamma, beta, mean, variance = (
        weights[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / torch.sqrt(variance + EPSILON)
    return weights[f"{convolution}.weight"].double() * scale[:, None, None, None], beta - mean * scale


def build(trunk: TrunkSpec, weights: Mapping[str, Tensor], last: str = "head") -> dict[str, nn.Module]:
    """Build a trunk's stages up to and including `last` from its public checkpoint.

    Returns
    -------
    dict of str to Module
        In running order; the stem takes ONE channel: three equal ones are its weights summed.
    """
    built: dict[str, nn.Module] = {}
    for spec in trunk.stages[: trunk.names.index(last) + 1]:
        if spec.name == "stem":
            weight, bias = fold(weights, "_conv_stem", "_bn0")
            built["stem"] = FoldedConvolution(weight.sum(1, keepdim=True), bias, stride=spec.stride)
        elif spec.name == "head":
            built["head"] = FoldedConvolution(*fold(weights, "_conv_head", "_bn1"))
        else:
            prefix = f"_blocks.{spec.name.removeprefix('block')}"
            wide = spec.channels_in * spec.expansion
            layers = []
            if spec.expansion > 1:
                layers.append(FoldedConvolution(*fold(weights, f"{prefix}._expand_conv", f"{prefix}._bn0")))
            depthwise = fold(weights, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
            layers.append(FoldedConvolution(*depthwise, stride=spec.stride, groups=wide))
            project = fold(weights, f"{prefix}._project_conv", f"{prefix}._bn2")
            layers.append(FoldedConvolution(*project, active=False))
            residual = spec.stride == 1 and spec.channels_in == spec.channels_out
            built[spec.name] = InvertedResidual(layers, residual=residual)
    return built


class Trunk:
    """The public part of a model: from an image to the features that enter the private head.

    Parameters
    ----------
    taps : sequence of str
        Stages whose outputs are the features, in order; each is average-pooled to 7 x 7 and scaled so that its mean
        over positions has length 1 / sqrt(len(taps)).
    sha256 : str, optional
        Of the public checkpoint, where a card names one; another file is refused.
    name : {"efficientnet-lite0", "efficientnet-lite1"}
    side : {224, 288}
        To which the image is enlarged first; finer stages then see more of each position.
    regions : {1, 2}
        Of height and of width (one level of spatial pyramid pooling, He et al. 2014, arXiv 1406.4729). With 2, each
        channel comes four times, as seen by each quarter, so that a head that is linear at each position has weights of
        its own for each.

    Raises
    ------
    ConfigError
        A tap is not a stage's name or is finer than the grid allows.
    IntegrityError
        The installed checkpoint is not the card's.
    """

    def __init__(
        self,
        taps: Sequence[str] = ("head",),
        sha256: str | None = None,
        *,
        name: TrunkName = "efficientnet-lite0",
        side: Side = 224,
        regions: Regions = 1,
    ) -> None:
        spec = TRUNKS[name]
        unknown = [tap for tap in taps if tap not in spec.names]
        if unknown or not taps:
            raise ConfigError(f"{name} has no stage {', '.join(unknown) or '(none named)'}", code="unknown-stage")
        self.setup = TrunkSetup(name=name, taps=tuple(taps), side=side, regions=regions)
        self.sha256 = sha256 or spec.sha256
        last = max(taps, key=spec.names.index)
        self.stages = {key: stage.eval() for key, stage in build(spec, spec.checkpoint(sha256), last).items()}
        widths = {stage.name: stage.channels_out for stage in spec.stages}
        self.widths = tuple(widths[tap] * regions**2 for tap in taps)
        # The mean over positions of what a region sees is its own mean.
        self._seen = None if regions == 1 else torch.from_numpy(shares(regions, GRID) * regions**2).float()

    @classmethod
    def of(cls, setup: TrunkSetup) -> Trunk:
        """Make the trunk that a plan, settings or the default head ask for; see `Trunk`."""
        return cls(setup.taps, name=setup.name, side=setup.side, regions=setup.regions)

    @property
    def channels(self) -> int:
        """Length of the feature vector at each position."""
        return sum(self.widths)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The region that each channel sees, row by row from 0, shape (channels,)."""
        count = self.setup.regions**2
        return np.concatenate([np.repeat(np.arange(count), width // count) for width in self.widths])

    @property
    def identity(self) -> str:
        """What features depend on besides the image, as text."""
        return "\n".join([self.sha256, *self.setup.taps, str(self.setup.side), str(self.setup.regions)])

    def run(self, x: Tensor, first: str = "stem", last: str | None = None) -> dict[str, Tensor]:
        """Run the stages from `first` to `last` and keep the outputs of the taps and of `last`.

        Parameters
        ----------
        x : Tensor of float32, shape (batch, channels, rows, columns)
            What enters `first`; for the stem the normalised grey image.
        """
        names = list(self.stages)
        last = last or names[-1]
        kept = {}
        for name in names[names.index(first) : names.index(last) + 1]:
            x = self.stages[name](x)
            if name in self.setup.taps or name == last:
                kept[name] = x
        return kept

    def features_of(self, images: NDArray[np.float32]) -> Tensor:
        """Features of a batch.

        Parameters
        ----------
        images : ndarray of float32, shape (batch, 224, 224)
            0..1, bright is dense.

        Returns
        -------
        Tensor of float32, shape (batch, channels, 7, 7)
        """
        with torch.inference_mode():
            kept = self.run(scaled(images, self.setup.side))
            blocks = []
            for tap in self.setup.taps:
                grid = functional.adaptive_avg_pool2d(kept[tap], GRID)
                if self._seen is not None:
                    grid = (grid[:, None] * self._seen[:, None]).flatten(1, 2)
                length = grid.mean((2, 3)).norm(dim=1).clamp_min(LEAST_NORM)
                blocks.append(grid / (length * len(self.setup.taps) ** 0.5)[:, None, None, None])
            return torch.cat(blocks, 1).clamp_(-FEATURE_BOUND, FEATURE_BOUND)

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features of one image.

        Parameters
        ----------
        image : ndarray of float32, shape (224, 224)
            0..1, bright is dense.

        Returns
        -------
        ndarray of float64, shape (channels, 7, 7)
            Within ±16.
        """
        return self.features_of(require_square(image)[None])[0].double().numpy()


def greys(images: NDArray[np.float32], side: int) -> Tensor:
    """Bring a batch, shape (batch, 224, 224), 0..1, to grey values of 0..255, shape (batch, 1, side, side)."""
    x = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1) * 255.0
    if side != INPUT_SIZE:
        # The overshoot of bicubic weights is clipped, as in `dicom_node.pixels`.
        size = (side, side)
        x = functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 255.0)
    return x


def scaled(images: NDArray[np.float32], side: int = INPUT_SIZE) -> Tensor:
    """Scale a batch, shape (batch, 224, 224), 0..1, as the checkpoint takes it: bytes less `OFFSET`, over `DIVISOR`."""
    return ((greys(images, side) - OFFSET) / DIVISOR).contiguous(memory_format=torch.channels_last)


def require_square(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the image as float32; ValueError where its shape is not (224, 224)."""
    if image.shape != (INPUT_SIZE, INPUT_SIZE):
        raise ValueError(f"the model takes {INPUT_SIZE} x {INPUT_SIZE} images, not {image.shape}")
    return image.astype(np.float32)
