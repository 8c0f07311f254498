"""The port through which the private part of the network is evaluated, and its reference in the clear.

`PlaintextEngine` needs the weights and is what every encrypted engine is compared with. `secure_infer.dealt` holds
the encrypted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError, Refused

from .card import Program
from .program import NetworkProgram


@dataclass(frozen=True)
class Inference:
    """What an engine answers.

    Attributes
    ----------
    logits : ndarray of float64, shape (classes,)
        Uncalibrated.
    evidence : ndarray of float64, shape (rows, columns, classes), or None
        Logits that each position alone would give, bias included: their mean is `logits`. None where the program
        evaluates the pooled features alone.
    """

    logits: NDArray[np.float64]
    evidence: NDArray[np.float64] | None


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
        features : ndarray of float64, shape (positions, channels)
            Output of the public part, within the card's `input_bound`; positions row by row.

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


def columns_of(program: Program | NetworkProgram, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Check features and arrange them as the program's input.

    A network takes its input as it is.

    A program of one column evaluates the mean over the positions: the model's owner chose not to give away a map.

    Returns
    -------
    ndarray of float64, shape (in_features, columns)

    Raises
    ------
    ConfigError
        The shape is not the program's: the card and the public part do not belong together.
    Refused
        See `Engine.infer`.
    """
    if isinstance(program, NetworkProgram):
        if features.shape != program.input_shape:
            raise ConfigError(
                f"the model's program takes the shape {program.input_shape}, not {features.shape}", code="program-shape"
            )
        _require_bound(program.input_bound, features)
        if program.input_norm is not None and not np.linalg.norm(features) <= program.input_norm:
            raise Refused("this image is beyond the model's proven range", code="features-out-of-range")
        return np.ascontiguousarray(features, dtype=np.float64)
    first = program.layers[0]
    pooled = first.columns == 1
    if features.ndim != 2 or features.shape[1] != first.in_features or (not pooled and len(features) != first.columns):
        raise ConfigError(
            f"the model's program takes {first.columns} columns of {first.in_features} features, "
            f"the public part gave the shape {features.shape}",
            code="program-shape",
        )
    _require_bound(program.input_bound, features)
    given = features.mean(axis=0, keepdims=True) if pooled else features
    return np.ascontiguousarray(given.T, dtype=np.float64)


def _require_bound(bound: float, features: NDArray[np.float64]) -> None:
    if not len(features) or not (np.abs(features) <= bound).all():  # false for NaN, too
        raise Refused("a feature of this image is beyond the model's proven range", code="features-out-of-range")


def inference_of(program: Program | NetworkProgram, outputs: NDArray[np.float64]) -> Inference:
    """Arrange the program's output (out_features, columns) as an answer.

    Raises
    ------
    ConfigError
        The columns are not those of a square map.
    """
    if isinstance(program, NetworkProgram):
        return Inference(outputs.reshape(-1).copy(), None)
    classes, columns = outputs.shape
    if program.layers[-1].columns == 1:
        return Inference(outputs[:, 0].copy(), None)
    side = isqrt(columns)
    if side * side != columns:
        raise ConfigError(f"{columns} columns do not make a square map of evidence", code="program-shape")
    return Inference(outputs.mean(axis=1), np.ascontiguousarray(outputs.T).reshape(side, side, classes))


class PlaintextEngine:
    """The reference: float64, in the clear, only where the weights are.

    Parameters
    ----------
    program : Program
        The card's private part.
    weights : mapping of ndarray
        Its tensors, from `ModelStore.weights`.
    """

    name = "plaintext"

    def __init__(self, program: Program, weights: Mapping[str, NDArray[np.float64]]) -> None:
        self._program = program
        self._layers = [(weights[f"{one.name}.weight"], weights[f"{one.name}.bias"]) for one in program.layers]

    def infer(self, features: NDArray[np.float64]) -> Inference:
        """Evaluate the features of one image; see `Engine.infer`."""
        values = columns_of(self._program, features)
        for weight, bias in self._layers:
            values = weight @ values + bias[:, None]
        return inference_of(self._program, values)

    def close(self) -> None:
        """Do nothing: this engine holds nothing."""
