"""Figures of a classifier with intervals: area under the ROC curve (Hanley & McNeil 1982) and bootstrap by patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A metric takes the weight of each image and returns a number.
Metric = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64] | None = None) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half.

    Parameters
    ----------
    scores, positive : ndarray, shape (n,)
    weights : ndarray, shape (n,), optional
        How often each element counts.

    Returns
    -------
    float
        0..1; NaN where a class has no weight.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    values, place = np.unique(scores, return_inverse=True)
    above = np.bincount(place, weights * positive, len(values))
    below = np.bincount(place, weights * ~positive, len(values))
    won = float((above * (np.cumsum(below) - below / 2)).sum())
    total = float(above.sum() * below.sum())
    return won / total if total else float("nan")


def bootstrap(metric: Metric, patients: NDArray[np.int64], *, replicates: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap that draws whole patients (Efron & Tibshirani 1993): their images stay together.

    Parameters
    ----------
    metric : callable
        From the weight of each image to a number.
    patients : ndarray of int, shape (n,)
        Number of each image's patient, from 0.
    replicates, seed : int
        The seed is fixed so that a card can be recomputed.

    Returns
    -------
    Interval
    """
    rng = np.random.default_rng(seed)
    count = int(patients.max()) + 1
    drawn = np.empty(replicates)
    for replicate in range(replicates):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        drawn[replicate] = metric(times[patients].astype(np.float64))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(metric(np.ones(len(patients))), float(low), float(high))


def pneumonia_metrics(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, Metric]:
    """Name the figures that a card carries.

    Parameters
    ----------
    probabilities : ndarray of float64, shape (n, 3)
        Normal, bacterial, viral.
    labels : ndarray of int, shape (n,)
        0 normal, 1 bacterial, 2 viral.

    Returns
    -------
    dict of str to Metric
        `auc_pneumonia`; `auc_bacterial_viral` on the pneumonia images alone, scored by bacterial / (bacterial +
        viral); `accuracy_three_classes`; `sensitivity_at_half` and `specificity_at_half` of pneumonia at 0.5.
    """
    ill = labels > 0
    pneumonia = 1.0 - probabilities[:, 0]
    kind = probabilities[:, 1] / np.maximum(probabilities[:, 1] + probabilities[:, 2], 1e-300)
    right = probabilities.argmax(1) == labels

    def share(hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> Metric:
        return lambda weights: float((weights * hit * among).sum() / max((weights * among).sum(), 1e-300))

    return {
        "auc_pneumonia": lambda weights: auc(pneumonia, ill, weights),
        "auc_bacterial_viral": lambda weights: auc(kind[ill], (labels == 1)[ill], weights[ill]),
        "accuracy_three_classes": share(right, np.ones(len(labels), dtype=bool)),
        "sensitivity_at_half": share(pneumonia >= 0.5, ill),
        "specificity_at_half": share(pneumonia < 0.5, ~ill),
    }
