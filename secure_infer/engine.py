"""The port through which the private part of the network is evaluated.

`secure_infer.clear` holds the engine that needs the weights, with which every encrypted one is compared, and
`secure_infer.dealt` the encrypted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError, Refused

from .program import Program


@dataclass(frozen=True)
class Inference:
    """What an engine answers.

    Attributes
    ----------
    logits : ndarray of float64, shape (classes,)
        Uncalibrated.
    evidence : ndarray of float64, shape (rows, columns, classes), or None
        Logits that each position alone would give, bias included: their mean is `logits`. None where the program
        ends in one position.
    bundle_id : str
        Under which the other parties' logs know this query, hexadecimal; empty where there are none.
    """

    logits: NDArray[np.float64]
    evidence: NDArray[np.float64] | None
    bundle_id: str = ""


class Engine(Protocol):
    """Evaluates the private part of the network; may be called from several threads at once."""

    @property
    def name(self) -> str:
        """Name in reports, audit and settings."""
        ...

    def infer(self, features: NDArray[np.float64]) -> Inference:
        """Evaluate the features of one image.

        Parameters
        ----------
        features : ndarray of float64, shape (channels, rows, columns)
            Output of the public part, or the image where nothing is public; within the card's `input_bound`.

        Raises
        ------
        Refused
            A feature is not a number or out of bounds (``features-out-of-range``).
        Unavailable, ProtocolError
            The other parties are away or broke the rules; encrypted engines only.
        """
        ...

    def close(self) -> None:
        """Give back threads and connections."""
        ...


def input_of(program: Program, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Check features and arrange them as the program's input.

    A program of one position takes the mean over all: the model's owner chose not to give away a map.

    Returns
    -------
    ndarray of float64, shape `program.input_shape`

    Raises
    ------
    ConfigError
        The shape is not the program's: the card and the public part do not belong together.
    Refused
        See `Engine.infer`.
    """
    channels, *positions = program.input_shape
    pooled = positions == [1, 1] and features.ndim == 3 and len(features) == channels
    if features.shape != program.input_shape and not pooled:
        raise ConfigError(
            f"the model's program takes the shape {program.input_shape}, not {features.shape}", code="program-shape"
        )
    if not features.size or not (np.abs(features) <= program.input_bound).all():  # false for NaN, too
        raise Refused("a feature of this image is beyond the model's proven range", code="features-out-of-range")
    if program.input_norm is not None and not np.linalg.norm(features) <= program.input_norm:
        raise Refused("this image is beyond the model's proven range", code="features-out-of-range")
    given = features.mean(axis=(1, 2), keepdims=True) if pooled else features
    return np.ascontiguousarray(given, dtype=np.float64)


def inference_of(outputs: NDArray[np.float64]) -> Inference:
    """Arrange the program's output, shape (classes, rows, columns), as an answer."""
    evidence = np.ascontiguousarray(outputs.transpose(1, 2, 0)) if outputs[0].size > 1 else None
    return Inference(outputs.mean(axis=(1, 2)), evidence)
