"""A hospital's patients as examples, read anew each time they are asked for."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from dicom_node.core.database import Database
from dicom_node.core.errors import Refused
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from dicom_node.training import subjects
from dicom_node.training.site_key import open_key
from secure_infer.network import STAGE_NAMES, Trunk

from ..learning.plan import Plan
from ..learning.site import Examples
from ..site_images import SiteImages
from ..site_rows import SiteRows
from ..trainset import VIEWS


class SitePatients:
    """The patients of a site who agree to training.

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

    def __call__(self, plan: Plan) -> Examples:
        """Return the rows of all who agree now, as the plan's trunk sees them.

        Raises
        ------
        Refused
            The plan's features are none that this program computes (``features``).
        """
        known = plan.taps and set(plan.taps) <= set(STAGE_NAMES) and set(plan.views) <= set(VIEWS)
        if not known or _trunk(plan.taps).channels != plan.channels:
            raise Refused("the plan asks for features that this program does not compute", code="features")
        names = subjects.Pseudonyms(self._key, self._settings.training.issuer)
        subjects.refresh(self._database, self._store, names, _unseen)
        images = SiteImages(self._database, self._store, self._key, self._settings.selection, plan.population)
        reader = SiteRows(images, _trunk(plan.taps), plan.views, self._cache(plan))
        rows = reader.read(self._clock(), _unseen)
        return Examples(rows.features, rows.labels, np.arange(len(rows.patients)))

    def _cache(self, plan: Plan) -> Path:
        """Give each kind of features a folder, for whatever is not the reader's own is erased there."""
        kind = hashlib.sha256("\n".join([*plan.taps, *plan.views]).encode()).hexdigest()[:16]
        return self._settings.site.state_dir / "training-features" / kind


@lru_cache(maxsize=2)
def _trunk(taps: tuple[str, ...]) -> Trunk:
    return Trunk(taps)


def _unseen(done: int, total: int) -> None:
    """Take progress that nobody watches."""
