"""The receiving service of a site: Storage SCP, assembler, delivery and, where configured, the Orthanc change feed."""

from __future__ import annotations

import time
from collections.abc import Callable

from .assembler import Assembler
from .core import audit, jobs, logs, loops
from .core.audit import Event, Record
from .core.database import Database
from .core.errors import ConfigError
from .core.settings import Settings
from .delivery import Delivery
from .orthanc import ChangeFeed
from .scp import Scp
from .store import Store

log = logs.get(__name__)
DELIVERY_THREADS = 2
Round = Callable[[float], bool]


def _now(one: Round) -> Callable[[], bool]:
    return lambda: one(time.time())


def serve(settings: Settings) -> int:
    """Run the service until SIGTERM; return its exit status.

    Raises
    ------
    ConfigError
        Nobody may call and no change feed is read: the node could never receive anything.
    """
    feed_wanted = settings.orthanc is not None and settings.orthanc.change_feed
    if not settings.scp.peers and not feed_wanted:
        raise ConfigError("nobody may send studies: name at least one [[scp.peers]], or set orthanc.change_feed")
    stop = loops.stop_on_signals()
    database = Database(settings.database_url)
    database.migrate()
    store = Store(settings, database)
    store.recover()
    jobs.release_dead(database, time.time())
    with database.write() as connection:
        audit.append(connection, Record(Event.APPLICATION_ACTIVITY, "started", "E", "dicom-node serve"), time.time())
        seq, head = audit.head(connection)
    scp = Scp(settings, store)
    scp.start()
    assembler = Assembler(settings, database, store, open_studies=scp.open_studies)
    rounds: dict[str, Round] = {"assembler": assembler.run_once}
    for number in range(DELIVERY_THREADS):
        name = f"delivery-{number}"
        rounds[name] = Delivery(settings, database, store, owner=jobs.owner_name(name)).run_once
    feed = ChangeFeed(settings, database, store) if feed_wanted else None
    if feed is not None:
        rounds["change-feed"] = feed.run_once
    steps = {name: _now(one) for name, one in rounds.items()}
    log.info("ready", ae_title=settings.scp.ae_title, port=scp.port, audit_seq=seq, audit_head=head)
    status = loops.run(steps, settings.jobs.poll_s, stop)
    scp.stop()
    if feed is not None:
        feed.close()
    with database.write() as connection:
        audit.append(connection, Record(Event.APPLICATION_ACTIVITY, "stopped", "E", "dicom-node serve"), time.time())
    database.close()
    return status
