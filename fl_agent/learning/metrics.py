"""Loss, accuracy and ROC of the patients drawn, as one short vector for each patient whose sum is all that leaves.

The scores are counted in bins, so the area under the ROC curve follows from sums (Hanley & McNeil 1982), and so do the
numbers of patients: nothing about one hospital is told in clear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from ..figures import auc

#: Losses beyond this count as this; log 3 is that of a model that knows nothing.
LARGEST_LOSS: Final = 4.0
#: Of the probability of pneumonia; their edges hold the operating point's.
BINS: Final = 20
#: Loss, right answer, and a bin for the healthy and for the ill each.
LENGTH: Final = 2 + 2 * BINS
#: A loss of at most 1, a right answer, one bin.
NORM: Final = math.sqrt(3.0)

Array = NDArray[np.float64]


def of_patients(logits: Array, labels: NDArray[np.int64], patients: NDArray[np.int64]) -> Array:
    """Measure each patient.

    Parameters
    ----------
    logits : ndarray of float64, shape (images, 3)
        All images of some patients.
    labels : ndarray of int, shape (images,)
        The same for all images of a patient.
    patients : ndarray of int, shape (images,)
        Ascending from 0 without gaps.

    Returns
    -------
    ndarray of float64, shape (patients, LENGTH)
        Norm of each row at most `NORM`; that of a patient whose scores are no numbers is 0.
    """
    counts = np.bincount(patients)
    probabilities = np.zeros((len(counts), logits.shape[1]))
    np.add.at(probabilities, patients, softmax(logits, axis=1))
    probabilities /= counts[:, None]
    broken = ~np.isfinite(probabilities).all(axis=1)
    probabilities[broken] = 0.0
    truth = np.zeros(len(counts), dtype=np.int64)
    truth[patients] = labels
    everyone = np.arange(len(counts))
    found = np.zeros((len(counts), LENGTH))
    loss = -np.log(np.maximum(probabilities[everyone, truth], 1e-300))
    found[:, 0] = np.minimum(loss, LARGEST_LOSS) / LARGEST_LOSS
    found[:, 1] = probabilities.argmax(1) == truth
    bins = np.minimum((BINS * (1.0 - probabilities[:, 0])).astype(np.int64), BINS - 1)
    found[everyone, 2 + BINS * (truth > 0) + bins] = 1.0
    found[broken] = 0.0
    return found


@dataclass(frozen=True)
class Metrics:
    """What a noised sum says; every number is an estimate, and may lie beyond what is possible.

    Attributes
    ----------
    patients : float
        Who were drawn.
    loss, accuracy, auc : float
        Mean cross-entropy, share of right answers in three classes, and area under the ROC curve for pneumonia.
    undetermined : float
        Share whose probability of pneumonia lies between the ends of a band.
    """

    patients: float
    loss: float
    accuracy: float
    auc: float
    undetermined: float


def read(total: Array, expected: float, band: tuple[float, float] = (0.30, 0.60)) -> Metrics:
    """Read a sum of rows of `of_patients`.

    Parameters
    ----------
    total : ndarray of float64, shape (LENGTH,)
        With noise.
    expected : float
        About how many patients are in it, from public numbers.
    band : tuple of float
        Probabilities of pneumonia, on edges of the bins.
    """
    bins = np.maximum(total[2:], 0.0).reshape(2, BINS)
    scores = np.tile(np.arange(BINS, dtype=np.float64), 2)
    positive = np.repeat([False, True], BINS)
    area = auc(scores, positive, bins.ravel())
    low, high = (round(edge * BINS) for edge in band)
    return Metrics(
        patients=float(total[2:].sum()),
        loss=float(total[0] / expected) * LARGEST_LOSS,
        accuracy=float(total[1] / expected),
        auc=0.5 if math.isnan(area) else area,
        undetermined=float(bins[:, low:high].sum() / max(bins.sum(), 1.0)),
    )
