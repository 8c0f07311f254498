"""The training set of a hospital: one row of trunk features for each patient who agrees at this moment.

Consent is asked anew on every call, and the cached features of whoever left are erased in the same call.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import IntegrityError, Refused
from dicom_node.training.diagnosis import Diagnosis
from secure_infer.network import Trunk

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
        Pseudonyms; each once, so that a row's privacy is a patient's.
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
    trunk : Trunk
    views : sequence of str
        Of `trainset.VIEWS`.
    cache : Path
        Folder of the features, mode 0700; used by this class alone, since what belongs to nobody is erased.
    """

    def __init__(self, images: SiteImages, trunk: Trunk, views: Sequence[str], cache: Path) -> None:
        self._images = images
        self._trunk = trunk
        self._views = tuple(views)
        self._cache = cache
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, now: float, done: Callable[[int, int], None]) -> Rows:
        """Return the rows of all patients who agree at `now` (seconds since the epoch).

        Parameters
        ----------
        done : callable
            Called with (patients done, of all).
        """
        agreed = self._images.agreed(now)
        self._erase_all_but({self._file(digest).name for one in agreed for digest in one.digests})
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
        shape = (len(features), len(self._views), self._trunk.channels)
        stacked = np.array(features, dtype=np.float32).reshape(shape)
        return Rows(tuple(patients), np.array(labels, dtype=np.int64), stacked, dict(left_out))

    def _first_usable(self, digests: Sequence[str]) -> NDArray[np.float32] | str:
        """Return the features of the study's first image that passes all rules, else why the last one did not."""
        reason = "no-image"
        for digest in digests:
            try:
                return self._features(digest)
            except (Refused, IntegrityError) as error:
                reason = error.code
        return reason

    def _features(self, digest: str) -> NDArray[np.float32]:
        target = self._file(digest)
        if target.is_file():
            cached: NDArray[np.float32] = np.load(target, allow_pickle=False)
            return cached
        seen = self._images.image(digest)
        pooled = np.stack(
            [self._trunk.features(seen[:, ::-1] if view == "mirrored" else seen).mean((1, 2)) for view in self._views]
        ).astype(np.float32)
        part = target.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, pooled, allow_pickle=False)
        part.replace(target)
        return pooled

    def _file(self, digest: str) -> Path:
        """Return where one image's features are kept: other rules, trunk or views make another file."""
        identity = "\n".join([self._trunk.sha256, *self._trunk.taps, *self._views, self._images.rules, digest])
        return self._cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.npy"

    def _erase_all_but(self, kept: Collection[str]) -> None:
        for path in self._cache.iterdir():
            if path.name not in kept:
                path.unlink()
