"""The worker as a service: opens the model and the engine once, then classifies study after study."""

from __future__ import annotations

import time

import torch

from dicom_node.core import jobs, logs, loops
from dicom_node.core.database import Database
from dicom_node.core.settings import Settings
from dicom_node.store import Store

from .engines import open_engine, site_card
from .operations import memory
from .public import public_part
from .worker import Worker

log = logs.get(__name__)


def serve(settings: Settings) -> int:
    """Run one worker until SIGTERM; return its exit status.

    Raises
    ------
    ConfigError, IntegrityError
        Settings, model or certificates cannot be used.
    """
    stop = loops.stop_on_signals()
    memory.keep()
    torch.set_num_threads(settings.inference.threads)
    card = site_card(settings)
    database = Database(settings.database_url)
    database.migrate()
    store = Store(settings, database)
    public = public_part(card)
    engine = open_engine(settings, card)
    worker = Worker(settings, database, store, card, public, engine, owner=jobs.owner_name("worker"))
    jobs.release_dead(database, time.time())
    log.info("ready", model=card.version, engine=engine.name)
    status = loops.run({"classify": worker.run_once}, settings.jobs.poll_s, stop)
    engine.close()
    database.close()
    return status
