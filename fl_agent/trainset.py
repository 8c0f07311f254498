"""The training set: images, labels and patients of `kermany224` (Kermany et al. 2018), and their trunk features.

Features are cached: the trunk is public and frozen, so each image passes it once, however often a head is trained.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError, IntegrityError
from dicom_node.pixels import from_picture
from secure_infer.network import Trunk

from .features import pooled
from .research.pictures import grey

#: How an image may be seen; several at once are augmentation multiplicity (De et al. 2022, arXiv 2204.13650).
VIEWS = ("plain", "mirrored")


@dataclass(frozen=True)
class Films:
    """Some images of the data set, in the manifest's order.

    Attributes
    ----------
    files : tuple of str
        Paths below the data set's folder.
    sha256 : tuple of str
        Hash of each file.
    labels : ndarray of int, shape (n,)
        0 normal, 1 bacterial, 2 viral.
    patients : ndarray of int, shape (n,)
        Number of each image's patient, 0 to `count` - 1.
    """

    files: tuple[str, ...]
    sha256: tuple[str, ...]
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of patients."""
        return int(self.patients.max()) + 1

    @property
    def patient_labels(self) -> NDArray[np.int64]:
        """Label of each patient; all images of one patient carry the same."""
        labels = np.zeros(self.count, dtype=np.int64)
        labels[self.patients] = self.labels
        return labels

    def take(self, chosen: NDArray[np.bool_]) -> Films:
        """Keep some images and number their patients anew."""
        index = np.flatnonzero(chosen)
        _, patients = np.unique(self.patients[index], return_inverse=True)
        files, hashes = (tuple(column[i] for i in index) for column in (self.files, self.sha256))
        return Films(files, hashes, self.labels[index], patients.astype(np.int64))

    def sizes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Count images and patients of each class."""
        images, patients = (np.bincount(v, minlength=3).tolist() for v in (self.labels, self.patient_labels))
        return tuple(images), tuple(patients)


def read_manifest(folder: Path, split: str, *, duplicates: bool = False) -> Films:
    """Read one split's images from `manifest.csv`, without the exact duplicates that it marks unless they are wanted.

    Raises
    ------
    ConfigError
        The folder does not hold the data set.
    """
    try:
        with (folder / "manifest.csv").open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == split]
    except (OSError, KeyError) as error:
        raise ConfigError(f"{folder} does not hold kermany224 with its manifest.csv", code="training-data") from error
    if not duplicates:
        rows = [row for row in rows if row["drop_as_duplicate"] == "0"]
    if not rows:
        raise ConfigError(f"{folder} holds no images of the split {split}", code="training-data")
    _, patients = np.unique([row["patient_key"] for row in rows], return_inverse=True)
    labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
    files, hashes = (tuple(row[key] for row in rows) for key in ("file", "sha256"))
    return Films(files, hashes, labels, patients.astype(np.int64))


def split_patients(films: Films, share: float, seed: int) -> tuple[Films, Films]:
    """Set aside a share of the patients of each class; no patient is on both sides.

    Parameters
    ----------
    films : Films
    share : float
        Of the patients that go to the second part, 0..1.
    seed : int
        The split is public and must be repeatable; it is no secret of the privacy mechanism.

    Returns
    -------
    tuple of Films
        The rest (training) and the share (validation).
    """
    rng = np.random.default_rng(seed)
    aside = np.zeros(films.count, dtype=bool)
    for label in range(3):
        members = rng.permutation(np.flatnonzero(films.patient_labels == label))
        aside[members[: round(share * len(members))]] = True
    return films.take(~aside[films.patients]), films.take(aside[films.patients])


def read_image(folder: Path, films: Films, number: int) -> NDArray[np.float32]:
    """Read an image as the node's pixel code gives it, shape (224, 224), 0..1.

    Raises
    ------
    IntegrityError
        It is not the one that the manifest names.
    """
    path = folder / films.files[number]
    if hashlib.sha256(path.read_bytes()).hexdigest() != films.sha256[number]:
        raise IntegrityError(f"image {number} is not the one that the manifest names", code="training-image")
    return from_picture(grey(path))


def pooled_features(
    folder: Path, films: Films, trunk: Trunk, cache: Path, done: Callable[[int, int], None], views: Sequence[str]
) -> NDArray[np.float32]:
    """Trunk features of each image, averaged over positions: all that a head linear in them can see.

    Parameters
    ----------
    folder : Path
        Of the data set.
    films : Films
    trunk : Trunk
    cache : Path
        Folder of the results; they hold patient data as much as the images do.
    done : callable
        Called with (images done, of all).
    views : sequence of str
        Of `VIEWS`.

    Returns
    -------
    ndarray of float32, shape (images, views, channels)
        Norm of each vector at most 1.

    Raises
    ------
    IntegrityError
        An image is not the one that the manifest names.
    """
    identity = "\n".join([trunk.identity, *views, *films.sha256])
    target = cache / f"features-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npy"
    if target.is_file():
        done(len(films.files), len(films.files))
        cached: NDArray[np.float32] = np.load(target, allow_pickle=False)
        return cached
    found = np.empty((len(films.files), len(views), trunk.channels), dtype=np.float32)
    for number in range(len(films.files)):
        found[number] = pooled(trunk, read_image(folder, films, number), views)
        done(number + 1, len(films.files))
    cache.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with part.open("wb") as stream:
        np.save(stream, found, allow_pickle=False)
    part.replace(target)
    return found
