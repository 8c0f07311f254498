"""The training set of a hospital: one row of trunk features for each patient who agrees at this moment.

Consent is asked anew on every call, and the cached features of whoever left are erased in the same call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import IntegrityError, Refused
from dicom_node.training.diagnosis import Diagnosis

from .features import FeatureCache
from .site_images import SiteImages

#: As everywhere in training; pneumonia whose kind nobody named is none of them.
CLASSES = {Diagnosis.NORMAL: 0, Diagnosis.BACTERIAL: 1, Diagnosis.VIRAL: 2}
KIND_UNKNOWN = "kind-unknown"


@dataclass(frozen=True)
class Rows:
    """What one site may train with, by pseudonym; stays at the site.

    Attributes
    ----------
    patients : tuple of str
        Pseudonym of each image's patient: whose images stand together are one row of training.
    labels : ndarray of int, shape (n,)
        0 normal, 1 bacterial, 2 viral.
    features : ndarray of float32, shape (n, views, channels)
        Norm of each vector at most 1.
    left_out : dict of str to int
        How many patients who agreed have no row, by code of the reason: ``kind-unknown``, or that of the refusal.
    """

    patients: tuple[str, ...]
    labels: NDArray[np.int64]
    features: NDArray[np.float32]
    left_out: dict[str, int]


class SiteRows:
    """Reads the rows of one site.

    Parameters
    ----------
    images : SiteImages
    cache : FeatureCache
        Used by this class alone.
    """

    def __init__(self, images: SiteImages, cache: FeatureCache) -> None:
        self._images, self._cache = images, cache

    def read(self, now: float, done: Callable[[int, int], None]) -> Rows:
        """Return the rows of all patients who agree at `now` (seconds since the epoch).

        Parameters
        ----------
        done : callable
            Called with (patients done, of all).
        """
        agreed = self._images.agreed(now)
        self._cache.erase_all_but({self._name(digest) for one in agreed for digest in one.digests})
        patients: list[str] = []
        labels: list[int] = []
        features: list[NDArray[np.float32]] = []
        left_out: Counter[str] = Counter()
        for number, one in enumerate(agreed, start=1):
            if one.label not in CLASSES:
                left_out[KIND_UNKNOWN] += 1
            else:
                found = self._first_usable(one.digests)
                if isinstance(found, str):
                    left_out[found] += 1
                else:
                    patients.append(one.patient)
                    labels.append(CLASSES[one.label])
                    features.append(found)
            done(number, len(agreed))
        stacked = np.array(features, dtype=np.float32).reshape(-1, *self._cache.shape)
        return Rows(tuple(patients), np.array(labels, dtype=np.int64), stacked, dict(left_out))

    def _first_usable(self, digests: Sequence[str]) -> NDArray[np.float32] | str:
        """Return the features of the study's first image that passes all rules, else why the last one did not."""
        reason = "no-image"
        for digest in digests:
            try:
                return self._cache.features(self._name(digest), partial(self._images.image, digest))
            except (Refused, IntegrityError) as error:
                reason = error.code
        return reason

    def _name(self, digest: str) -> str:
        """Name one image's features: other rules make others."""
        return f"{self._images.rules}\n{digest}"
