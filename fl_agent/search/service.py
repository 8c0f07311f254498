"""A search over the hospitals of a coordinator's settings: its trials are runs like any other, through its courier."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dicom_node.core import logs
from dicom_node.core.errors import Unavailable

from ..coordinator.service import opened, plan_of
from ..coordinator.settings import CoordinatorSettings
from .search import Found, Progress, Search
from .study import Study
from .terms import METRICS_WEIGHT, Space, Terms

log = logs.get(__name__)
#: Below the coordinator's state.
STUDY: Final = Path("search") / "study.sqlite3"
PAUSE_S: Final = 2.0


def terms_of(loaded: CoordinatorSettings, trials: int, space: Space) -> Terms:
    """Write the terms of a search: all that `[run]` says and the space does not, its epsilon for ALL trials together.

    Raises
    ------
    ConfigError
        No noise meets the budget (``epsilon``); see `plan_of`.
    """
    weighted = loaded.model_copy(update={"run": loaded.run.model_copy(update={"metrics_weight": METRICS_WEIGHT})})
    return Terms(trials, plan_of(weighted, trials), space)


def search(
    loaded: CoordinatorSettings, terms: Terms, progress: Progress, sleep: Callable[[float], None] = time.sleep
) -> Found:
    """Make the trials that are left, and wait for hospitals that are away; the same after a kill.

    The ledgers are not at hand: a hospital whose budget does not suffice refuses the trial that is too much.

    Raises
    ------
    Refused
        Too many hospitals refused a trial.
    ConfigError
        The folder holds a search on other terms (``search-changed``), or another run goes on (``run-exists``).
    """
    study = Study(loaded.state_dir / STUDY, terms)
    try:
        with opened(loaded, publisher=None) as (coordinator, records):
            one = Search(terms, study, coordinator, records, {})
            while True:
                try:
                    return one.run(progress)
                except Unavailable as error:
                    log.warning("search-paused", duration_s=PAUSE_S, **logs.describe(error))
                    sleep(PAUSE_S)
    finally:
        study.close()
