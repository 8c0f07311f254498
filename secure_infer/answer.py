"""From logits to the answer that a report carries: calibrated probabilities and the card's operating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from .card import CLASSES, ModelCard


@dataclass(frozen=True)
class Answer:
    """What the model says about one image.

    Attributes
    ----------
    answer : {"present", "absent", "undetermined"}
        Pneumonia, by the card's operating point.
    pneumonia, bacterial, viral : float
        Calibrated probabilities, 0..1; pneumonia is the sum of the other two.
    """

    answer: Literal["present", "absent", "undetermined"]
    pneumonia: float
    bacterial: float
    viral: float

    @classmethod
    def from_logits(cls, logits: NDArray[np.float64], card: ModelCard) -> Answer:
        """Answer by the card's calibration and operating point.

        Parameters
        ----------
        logits : ndarray of float64, shape (3,)
            Normal, bacterial, viral: the private head's output, the mean over all positions.
        card : ModelCard
            The verified card of the model that gave them.

        Raises
        ------
        ValueError
            The logits are not three finite numbers: no answer is better than a made-up one.
        """
        if logits.shape != (len(CLASSES),) or not np.isfinite(logits).all():
            raise ValueError("an answer needs three finite logits")
        probabilities = softmax(card.calibrated(logits))
        bacterial, viral = float(probabilities[1]), float(probabilities[2])
        # The sum, not 1 - normal: where pneumonia is certain to the last bit, the difference may leave 0..1.
        pneumonia = min(bacterial + viral, 1.0)
        point = card.operating_point
        if pneumonia < point.absent_below:
            return cls("absent", pneumonia, bacterial, viral)
        decided = pneumonia >= point.present_from
        return cls("present" if decided else "undetermined", pneumonia, bacterial, viral)
