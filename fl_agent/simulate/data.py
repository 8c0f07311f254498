"""Training data for a federation on one machine: the public data set divided by patient, or drawn features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..head import SETUP, VIEWS, default_trunk
from ..learning.propose import Features
from ..learning.site import Examples
from ..order import Progress
from ..trainset import Films, pooled_features, read_manifest, split_patients
from .drawn import draw

#: Share of the patients who are nobody's, for figures.
VALIDATION_SHARE = 0.15
DRAWN_CHANNELS, DRAWN_PATIENTS = 48, 1500


@dataclass(frozen=True)
class Divided:
    """What a simulation runs on.

    Attributes
    ----------
    name : str
        Of the data, for people.
    features : Features
    sites : mapping of str to Examples
    validation : Examples
        Patients of no site.
    """

    name: str
    features: Features
    sites: Mapping[str, Examples]
    validation: Examples


def kermany(data: Path, sites: int, cache: Path, seed: int, progress: Progress) -> Divided:
    """Divide the training split of kermany224 by patient into uneven sites.

    Raises
    ------
    ConfigError
        The folder does not hold the data set.
    """
    folder, trunk = data / "kermany224", default_trunk()
    train, validation = split_patients(read_manifest(folder, "train"), VALIDATION_SHARE, seed)

    def examples(films: Films, what: str, views: tuple[str, ...]) -> Examples:
        pooled = pooled_features(folder, films, trunk, cache, lambda i, n: progress(what, i, n), views)
        return Examples(pooled, films.labels, films.patients)

    everybody = examples(train, "training features", VIEWS)
    divided = divide(everybody, sites, seed)
    features = Features(trunk.setup, VIEWS, trunk.channels)
    return Divided("kermany224", features, divided, examples(validation, "validation features", ("plain",)))


def drawn(sites: int, seed: int) -> Divided:
    """Draw features where no data are at hand; their figures say nothing about X-rays."""
    everybody = draw(DRAWN_PATIENTS, DRAWN_CHANNELS, seed, spread=2.0)
    features = Features(SETUP, VIEWS, DRAWN_CHANNELS)
    validation = draw(DRAWN_PATIENTS // 5, DRAWN_CHANNELS, seed + 1, spread=2.0)
    return Divided("drawn features", features, divide(everybody, sites, seed), validation)


def divide(everybody: Examples, sites: int, seed: int) -> dict[str, Examples]:
    """Deal patients out at random, to each site one share more than to the one before."""
    order = np.random.default_rng(seed).permutation(everybody.count)
    ends = np.cumsum(np.arange(1, sites + 1)) * everybody.count // (sites * (sites + 1) // 2)
    found = {}
    for number, members in enumerate(np.split(order, ends[:-1]), start=1):
        kept = np.isin(everybody.patients, members)
        _, patients = np.unique(everybody.patients[kept], return_inverse=True)
        found[f"site-{number}"] = Examples(everybody.features[kept], everybody.labels[kept], patients)
    return found
