"""A hospital's patients as examples, read anew each time they are asked for."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from dicom_node.core.database import Database
from dicom_node.core.errors import Refused
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from dicom_node.training import subjects
from dicom_node.training.site_key import open_key
from secure_infer.card import TrunkSetup
from secure_infer.network import Trunk
from secure_infer.trunks import TRUNKS

from ..features import FeatureCache
from ..learning.plan import Plan
from ..learning.site import Examples
from ..research.rows import FolderRows
from ..site_images import SiteImages
from ..site_rows import Rows, SiteRows
from ..trainset import VIEWS

#: Folders of features below the site's state.
STUDIES: Final = "training-features"
FILMS: Final = "film-features"


class SitePatients:
    """The patients of a site who agree to training: of the studies received, and of its folder of films.

    Parameters
    ----------
    settings : Settings
    database : Database
        The site's.
    clock : callable
        Seconds since the epoch; decides which consent holds.
    """

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._store = Store(settings, database)
        self._key = open_key(settings.training_key, database)
        self._names = subjects.Pseudonyms(self._key, settings.training.issuer)
        films = settings.training.films
        self._films = None if films is None else FolderRows(films, database, self._names, settings.selection)
        if films is None and (left := settings.site.state_dir / FILMS).exists():
            shutil.rmtree(left)

    def check(self) -> int:
        """Look the site's folder of films through, where it has one, and return how many patients may train.

        Raises
        ------
        ConfigError
            See `FolderRows.check`.
        """
        return 0 if self._films is None else self._films.check(_unseen)

    def __call__(self, plan: Plan) -> Examples:
        """Return the rows of all who agree now, as the plan's trunk sees them.

        Raises
        ------
        Refused
            The plan's features are none that this program computes (``features``).
        ConfigError, IntegrityError
            See `FolderRows.read`.
        """
        known = set(plan.trunk.taps) <= set(TRUNKS[plan.trunk.name].names) and set(plan.views) <= set(VIEWS)
        if not known or _trunk(plan.trunk).channels != plan.channels:
            raise Refused("the plan asks for features that this program does not compute", code="features")
        subjects.refresh(self._database, self._store, self._names, _unseen)
        images = SiteImages(self._database, self._store, self._key, self._settings.selection, plan.population)
        rows = [SiteRows(images, self._cache(STUDIES, plan)).read(self._clock(), _unseen)]
        if self._films is not None:
            rows.append(self._films.read(plan.population, self._cache(FILMS, plan), rows[0].patients, _unseen))
        return _together(rows)

    def _cache(self, whose: str, plan: Plan) -> FeatureCache:
        """Give each kind of features a folder, of which one is kept: others would still hold whoever left since."""
        trunk = _trunk(plan.trunk)
        kind = hashlib.sha256("\n".join([trunk.identity, *plan.views]).encode()).hexdigest()[:16]
        folder = self._settings.site.state_dir / whose
        for other in folder.glob("*"):
            if other.name != kind:
                shutil.rmtree(other)
        return FeatureCache(folder / kind, trunk, plan.views)


def _together(rows: Sequence[Rows]) -> Examples:
    _, patients = np.unique([one for part in rows for one in part.patients], return_inverse=True)
    features, labels = np.concatenate([one.features for one in rows]), np.concatenate([one.labels for one in rows])
    return Examples(features, labels, patients.astype(np.int64))


@lru_cache(maxsize=2)
def _trunk(setup: TrunkSetup) -> Trunk:
    return Trunk.of(setup)


def _unseen(done: int, total: int) -> None:
    """Take progress that nobody watches."""
