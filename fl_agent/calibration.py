"""Turns logits into probabilities and an answer, on patients whom the training did not see, under their own budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from dicom_node.core.errors import ConfigError
from secure_infer.card import Mechanism

from .accounting import descent_of, noise_for, release_of
from .head import patient_means
from .order import Array, Progress
from .randomness import SecureSource
from .train import Recipe, descend, patient_rows, release_mean
from .trainset import Films

RECIPE = Recipe(steps=100, sampling_rate=1.0, clip=1.0, learning_rate=1.0, momentum=0.0)
#: Logits enter calibration divided by this, so that its four gradients have like sizes.
LOGIT_SCALE = 3.0
#: Noise of the single release; little of the budget goes to it.
BAND_NOISE = 10.0
#: Noise of what quarters give, in units of a norm that theirs seldom exceeds; fewer patients would drown in it.
QUARTERS_NOISE, QUARTERS_NORM, QUARTERS_PATIENTS = 10.0, 30.0, 300
ABSENT_BELOW, PRESENT_FROM = 0.30, 0.60


@dataclass(frozen=True)
class Calibrated:
    """How logits become probabilities.

    Attributes
    ----------
    scale : float
    offsets : tuple of float
        Sum 0.
    band_share : float
        Of the patients (their images counting equally) whose answer is undetermined, with noise, within 0..1.
    mechanisms : tuple of Mechanism
    quarters : ndarray of float64, shape (4, 3), or None
        Means over patients of what `calibrate` was given, with noise.
    """

    scale: float
    offsets: tuple[float, float, float]
    band_share: float
    mechanisms: tuple[Mechanism, ...]
    quarters: Array | None = None

    def probabilities(self, logits: Array) -> Array:
        """Calibrate logits, shape (..., 3)."""
        found: Array = softmax(self.scale * logits + np.array(self.offsets), axis=-1)
        return found


def calibrate(
    logits: Array,
    films: Films,
    budget: tuple[float, float],
    source: SecureSource,
    progress: Progress,
    quarters: Array | None = None,
) -> Calibrated:
    """Find scale and offsets of the logits, and the share of the undetermined, on other patients under DP.

    Parameters
    ----------
    logits : ndarray of float64, shape (images, 3)
        Of the validation images.
    quarters : ndarray of float64, shape (images, 4, 3), optional
        By which logits each quarter differs from the whole image; not released for fewer than `QUARTERS_PATIENTS`.
    """
    band = release_of("undetermined share", "validation patients", films.count, BAND_NOISE)
    single = [band]
    if quarters is not None and films.count >= QUARTERS_PATIENTS:
        single.append(release_of("quarters", "validation patients", films.count, QUARTERS_NOISE))
    descent = noise_for(*budget, descent_of("calibration", "validation patients", films.count, RECIPE), single)
    # One shared row of four weights, scale and three offsets, applied to (logit of the class, one-hot of the class).
    inputs = np.empty((len(logits), 1, 3, 4), dtype=np.float32)
    inputs[:, 0, :, 0] = logits / LOGIT_SCALE
    inputs[:, 0, :, 1:] = np.eye(3)
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[LOGIT_SCALE, 0.0, 0.0, 0.0]]))
    rows = patient_rows(inputs, films.labels, films.patients)
    found = descend(
        module,
        rows,
        RECIPE,
        descent.noise_multiplier,
        source,
        lambda step, of: progress("calibration", step, of),
    )
    scale, *offsets = (float(value) for value in found["weight"][0])
    scale /= LOGIT_SCALE
    if scale <= 0:
        raise ConfigError("calibration turned the logits round: the head has learned nothing", code="training-failed")
    mean = sum(offsets) / 3
    centred = (offsets[0] - mean, offsets[1] - mean, offsets[2] - mean)

    pneumonia = 1.0 - softmax(scale * logits + np.array(centred), axis=1)[:, 0]
    inside = (pneumonia >= ABSENT_BELOW) & (pneumonia < PRESENT_FROM)
    per_patient = np.bincount(films.patients, inside) / np.bincount(films.patients)
    share = release_mean(per_patient[:, None], band.clip, band.noise_multiplier, source)[0]
    usual = None
    if quarters is not None and len(single) > 1:
        means = patient_means(quarters.reshape(len(quarters), 1, -1) / QUARTERS_NORM, films.patients)
        noised = release_mean(means, single[1].clip, single[1].noise_multiplier, source).reshape(4, 3) * QUARTERS_NORM
        usual = noised - noised.mean(0)  # noise must not move the whole map
    return Calibrated(scale, centred, float(np.clip(share, 0.0, 1.0)), (descent, *single), usual)
