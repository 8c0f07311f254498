"""The public part of a model: from an image to what enters the private part, in the clear at the hospital."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dicom_node.pixels import INPUT_SIZE


@dataclass(frozen=True)
class Greys:
    """No public layers at all: the image itself enters the private part.

    Attributes
    ----------
    side : int
        Rows and columns, at most 224.
    channels : int
        How many equal channels.
    offset, divisor : float
        What is taken from the grey value 0..255, and what it is then divided by.
    """

    side: int
    channels: int
    offset: float
    divisor: float

    def batch(self, images: NDArray[np.float32]) -> Tensor:
        """Prepare a batch of images.

        Parameters
        ----------
        images : ndarray of float32, shape (batch, 224, 224)
            0..1, bright is dense.

        Returns
        -------
        Tensor of float32, shape (batch, channels, side, side)
        """
        x = torch.from_numpy(np.ascontiguousarray(images))[:, None] * 255.0
        if self.side != INPUT_SIZE:
            size = (self.side, self.side)
            # The overshoot of bicubic weights is clipped, as in `dicom_node.pixels`.
            x = functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 255.0)
        return ((x - self.offset) / self.divisor).expand(-1, self.channels, -1, -1)

    def features(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """Prepare one image, shape (224, 224), 0..1; the result has the shape (channels, side, side)."""
        if image.shape != (INPUT_SIZE, INPUT_SIZE):
            raise ValueError(f"the model takes {INPUT_SIZE} x {INPUT_SIZE} images, not {image.shape}")
        return self.batch(image[None].astype(np.float32))[0].double().numpy()
