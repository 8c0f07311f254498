"""The public part of a model: from an image to what enters the private part, in the clear at the hospital.

A model's owner chooses how much is public: the whole trunk, its stages up to any cut, or nothing but the resampling of
the image (`Trunk`, `Prefix`, `Greys`). The card says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicom_node.core.errors import ConfigError

from .card import ModelCard, Side, TrunkCard
from .network import Trunk, greys, require_square, scaled
from .trunks import LITE0


class PublicPart(Protocol):
    """From images to the private part's input; may be called from several threads at once."""

    def features_of(self, images: NDArray[np.float32]) -> Tensor:
        """Prepare a batch.

        Parameters
        ----------
        images : ndarray of float32, shape (batch, 224, 224)
            0..1, bright is dense.

        Returns
        -------
        Tensor of float32, shape (batch, channels, rows, columns)
        """
        ...

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """Prepare one image, shape (224, 224), 0..1; the result has the shape (channels, rows, columns).

        Raises
        ------
        ValueError
            The image has another shape.
        """
        ...


@dataclass(frozen=True)
class Greys:
    """No public layers at all: the image itself enters the private part.

    Attributes
    ----------
    side : int
        Rows and columns.
    channels : int
        How many equal channels.
    offset, divisor : float
        What is taken from the grey value 0..255, and what it is then divided by.
    """

    side: int
    channels: int
    offset: float
    divisor: float

    def features_of(self, images: NDArray[np.float32]) -> Tensor:
        """Resample and scale a batch; see `PublicPart`."""
        return ((greys(images, self.side) - self.offset) / self.divisor).expand(-1, self.channels, -1, -1)

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """Resample and scale one image; see `PublicPart`."""
        return self.features_of(require_square(image)[None])[0].double().numpy()


class Prefix:
    """The public stages of EfficientNet-Lite0 up to a cut, without pooling or normalisation behind them.

    Parameters
    ----------
    cut : str
        The last public stage.
    sha256 : str, optional
        Of the public checkpoint, where a card names one; another file is refused.

    Raises
    ------
    ConfigError, IntegrityError
        See `Trunk`.
    """

    def __init__(self, cut: str, sha256: str | None = None) -> None:
        self._trunk, self._cut = Trunk((cut,), sha256), cut

    def features_of(self, images: NDArray[np.float32]) -> Tensor:
        """Run a batch up to the cut; see `PublicPart`."""
        with torch.no_grad():  # not inference mode: the private part may train on what leaves here
            return self._trunk.run(scaled(images), last=self._cut)[self._cut].contiguous()

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """Run one image up to the cut; see `PublicPart`."""
        return self.features_of(require_square(image)[None])[0].double().numpy()


def public_part(card: ModelCard) -> PublicPart:
    """Make the public part that a card describes.

    Raises
    ------
    ConfigError
        The card's public and private part do not fit each other (``program-shape``), or see `Trunk`.
    IntegrityError
        The installed checkpoint is not the card's.
    """
    trunk, shape, taken = card.trunk, card.suffix.input_shape, card.preprocessing
    if trunk is None:
        return Greys(taken.side, shape[0], taken.offset, taken.divisor)
    if isinstance(trunk, TrunkCard):
        # A card with another side is none.
        side, regions = cast(Side, taken.side), trunk.regions or 1
        return Trunk(trunk.taps, trunk.sha256, name=trunk.name, side=side, regions=regions)
    found = Prefix(trunk.cut, trunk.sha256)
    given = next((stage.channels_out, stage.side, stage.side) for stage in LITE0.stages if stage.name == trunk.cut)
    if shape != given:
        raise ConfigError(f"the private part takes {shape}, stage {trunk.cut} gives {given}", code="program-shape")
    return found
