"""Figures of a classifier over several trainings, with 95 % intervals over both trainings and test patients.

An interval is the percentile bootstrap (Efron & Tibshirani 1993) that draws trainings and whole patients together: it
says where the figure would lie with other noise, other hospitals and other patients of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fl_agent.figures import Interval, Metric, pneumonia_metrics

Array = NDArray[np.float64]
#: Bins of the expected calibration error (Guo et al. 2017), equally wide.
BINS = 15


def metrics(probabilities: Array, labels: NDArray[np.int64]) -> dict[str, Metric]:
    """Name the figures of one training.

    Parameters
    ----------
    probabilities : ndarray of float64, shape (n, 3)
        Normal, bacterial, viral.
    labels : ndarray of int, shape (n,)

    Returns
    -------
    dict of str to Metric
        Those of a model card, and of pneumonia at 0.5: `mcc` (Matthews 1975), `ece` and `brier` (Brier 1950).
    """
    ill, pneumonia = labels > 0, 1.0 - probabilities[:, 0]
    bins = np.minimum((BINS * pneumonia).astype(np.int64), BINS - 1)

    def mcc(weights: Array) -> float:
        said = pneumonia >= 0.5
        hit, false, missed, right = (
            float(weights[one].sum()) for one in (said & ill, said & ~ill, ~said & ill, ~said & ~ill)
        )
        below = np.sqrt((hit + false) * (hit + missed) * (right + false) * (right + missed))
        return float((hit * right - false * missed) / below) if below else 0.0

    def ece(weights: Array) -> float:
        gaps = np.bincount(bins, weights * (pneumonia - ill), BINS)
        return float(np.abs(gaps).sum() / weights.sum())

    def brier(weights: Array) -> float:
        return float((weights * (pneumonia - ill) ** 2).sum() / weights.sum())

    found = pneumonia_metrics(probabilities, labels)
    names = {"sensitivity_at_half": "sensitivity", "specificity_at_half": "specificity"}
    return {names.get(name, name): metric for name, metric in found.items()} | {"mcc": mcc, "ece": ece, "brier": brier}


def intervals(
    logits: Sequence[Array], labels: NDArray[np.int64], patients: NDArray[np.int64], *, replicates: int, seed: int = 0
) -> dict[str, Interval]:
    """Average the figures of several trainings.

    Parameters
    ----------
    logits : sequence of ndarray of float64, shape (n, 3)
        Of each training, on the same images.
    labels, patients : ndarray of int, shape (n,)
        Patients from 0 without gaps.
    replicates, seed : int

    Returns
    -------
    dict of str to Interval
    """
    runs = [metrics(softmax(one, axis=1), labels) for one in logits]
    rng, count = np.random.default_rng(seed), int(patients.max()) + 1
    drawn: dict[str, list[float]] = {name: [] for name in runs[0]}
    for _ in range(replicates):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)[patients].astype(np.float64)
        chosen = np.bincount(rng.integers(0, len(runs), len(runs)), minlength=len(runs))
        for name, values in drawn.items():
            values.append(_mean(name, runs, weights, chosen))
    everyone = np.ones(len(patients))
    once = np.ones(len(runs), dtype=np.int64)
    found = {}
    for name, values in drawn.items():
        low, high = np.nanpercentile(values, [2.5, 97.5])
        found[name] = Interval(_mean(name, runs, everyone, once), float(low), float(high))
    return found


def _mean(name: str, runs: Sequence[Mapping[str, Metric]], weights: Array, times: NDArray[np.int64]) -> float:
    total = sum(count * run[name](weights) for run, count in zip(runs, times, strict=True) if count)
    return float(total / times.sum())


def keyed(cell: str, found: Mapping[str, Interval]) -> dict[str, float]:
    """Name a cell's figures as the bench writes them: value, `_low` and `_high`."""
    ends: tuple[tuple[str, Callable[[Interval], float]], ...] = (
        ("", lambda one: one.value),
        ("_low", lambda one: one.low),
        ("_high", lambda one: one.high),
    )
    return {f"{cell}_{name}{end}": read(one) for name, one in found.items() for end, read in ends}
