"""The worker as a service: opens the active model and its engine, then classifies study after study.

Which model is active is looked up before each study: one that was activated, or rolled back to, answers from the next
study on, without a restart and without a study in between that is answered by half of each.
"""

from __future__ import annotations

import time

import torch

from dicom_node.core import jobs, logs, loops
from dicom_node.core.database import Database
from dicom_node.core.settings import Settings
from dicom_node.store import Store

from .engine import Engine
from .engines import open_engine
from .operations import memory
from .public import public_part
from .site_models import site_card, version_in_use
from .worker import Worker

log = logs.get(__name__)


class Serving:
    """A worker with the model that answers now.

    Parameters
    ----------
    settings : Settings
        The site's.
    database, store
        The site's records and instances.

    Raises
    ------
    ConfigError, IntegrityError
        Settings, model or certificates cannot be used; so does `run_once` once another model is active.
    """

    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._owner = jobs.owner_name("worker")
        self._engine: Engine | None = None
        self._take_up()

    @property
    def about(self) -> dict[str, str]:
        """Model and engine, for the log."""
        assert self._engine is not None
        return {"model": self._version, "engine": self._engine.name}

    def run_once(self) -> bool:
        """Take one due job and bring it to an end; false when none is due."""
        if version_in_use(self._settings) != self._version:
            self._take_up()
            log.info("model-taken-up", **self.about)
        return self._worker.run_once()

    def close(self) -> None:
        """Give back the engine's threads and connections."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _take_up(self) -> None:
        self.close()  # a bundle dealt ahead fits its own model alone
        card = site_card(self._settings)
        public = public_part(card)
        self._engine = open_engine(self._settings, card)
        self._worker = Worker(
            self._settings, self._database, self._store, card, public, self._engine, owner=self._owner
        )
        self._version = card.version


def serve(settings: Settings) -> int:
    """Run one worker until SIGTERM; return its exit status.

    Raises
    ------
    ConfigError, IntegrityError
        See `Serving`.
    """
    stop = loops.stop_on_signals()
    memory.keep()
    torch.set_num_threads(settings.inference.threads)
    database = Database(settings.database_url)
    database.migrate()
    serving = Serving(settings, database, Store(settings, database))
    jobs.release_dead(database, time.time())
    log.info("ready", **serving.about)
    status = loops.run({"classify": serving.run_once}, settings.jobs.poll_s, stop)
    serving.close()
    database.close()
    return status
