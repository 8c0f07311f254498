"""For machines: `/healthz` for a supervisor or proxy, `/metrics` in the Prometheus text format 0.0.4.

Neither holds patient data: labels are refusal codes, kinds and states of jobs, names of destinations, and stages.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from dicom_node.core import logs
from dicom_node.core.database import Database, fact, instance
from dicom_node.core.errors import Unavailable
from dicom_node.core.settings import Settings

from . import queries

log = logs.get(__name__)
PROBE = "web.write-probe"
PROBE_EVERY_S = 5.0  # a probe waits for the disk: callers that ask more often share one
Sample = tuple[dict[str, str], float]  # labels and value
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Health:
    """Whether the site can do its work; `problems` holds one sentence for each reason why not."""

    database_writable: bool
    free_disk_bytes: int
    oldest_lease_overdue_s: float
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, object]:
        """Give the answer of `/healthz`."""
        return {"ok": self.ok} | asdict(self)


class HealthProbe:
    """Looks at the database, the disk and the leases, at most once in `PROBE_EVERY_S` seconds."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lock = threading.Lock()
        self._newest: tuple[float, Health] | None = None

    def look(self, now: float) -> Health:
        """Return the site's health at `now`, seconds since the epoch."""
        with self._lock:
            if self._newest is None or not 0 <= now - self._newest[0] < PROBE_EVERY_S:
                self._newest = (now, self._probe(now))
            return self._newest[1]

    def _probe(self, now: float) -> Health:
        problems = []
        overdue, writable = 0.0, True
        try:
            with self._database.write() as connection:  # a real, durable write: reading would not notice a full disk
                value = {"value": f"{now:.0f}"}
                if connection.execute(fact.update().where(fact.c.name == PROBE).values(**value)).rowcount == 0:
                    connection.execute(fact.insert().values(name=PROBE, **value))
                expiry = queries.backlog(connection).oldest_lease_expiry
                overdue = max(0.0, now - expiry) if expiry is not None else 0.0
        except (Unavailable, sa.exc.SQLAlchemyError) as error:
            log.error("health-probe", **logs.describe(error))
            writable = False
            problems.append("The database cannot be written: look at its disk and at the log.")
        free = free_disk(self._settings.site.state_dir)
        if free < self._settings.scp.minimum_free_bytes:
            problems.append("The disk of state_dir is nearly full: studies are not taken. Free space on it.")
        if overdue > self._settings.jobs.lease_s:
            problems.append("A worker stopped and none took its job over: is secure-infer worker running?")
        return Health(writable, free, round(overdue, 1), tuple(problems))


def free_disk(folder: Path) -> int:
    """Return the free bytes of the file system that holds `folder`; 0 when the folder does not exist."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def metrics(connection: sa.Connection, state_dir: Path, now: float) -> str:
    """Return all figures in the Prometheus text format.

    Counters are counted from the records, so they survive a restart; the quantiles are over the newest 100 studies.
    """
    backlog = queries.backlog(connection)
    instances = connection.execute(sa.select(instance.c.conflict, sa.func.count()).group_by(instance.c.conflict))
    by_conflict = Counter({bool(row[0]): row[1] for row in instances})
    rejected = queries.rejection_codes(connection).items()
    ages = {kind: now - since for kind, since in backlog.oldest_waiting.items()}
    rows = queries.studies(connection, limit=2 * queries.PAGE)
    seconds = [row.seconds for row in rows if row.seconds is not None]
    stages: dict[str, list[float]] = {}
    for result in queries.recent_results(connection):
        for stage, value in result["seconds"].items():
            stages.setdefault(stage, []).append(value)
    families: tuple[tuple[str, str, str, list[Sample]], ...] = (
        ("instances_total", "counter", "Instances received and kept.", [({}, by_conflict.total())]),
        ("instances_conflicting_total", "counter", "Same UID, other bytes.", [({}, by_conflict[True])]),
        (
            "refusals_total",
            "counter",
            "Instances kept but not classified, by reason.",
            [({"code": code}, count) for code, count in queries.refusal_codes(connection).items()],
        ),
        (
            "rejections_total",
            "counter",
            "Objects not accepted, by reason and DIMSE status.",
            [({"code": code, "status": f"0x{status:04X}"}, count) for (code, status), count in rejected],
        ),
        (
            "jobs",
            "gauge",
            "Jobs by kind and state.",
            [({"kind": kind, "state": state}, count) for (kind, state), count in sorted(backlog.counts.items())],
        ),
        (
            "oldest_waiting_job_seconds",
            "gauge",
            "Age of the oldest waiting job.",
            [({"kind": kind}, age) for kind, age in sorted(ages.items())],
        ),
        ("delivery_age_seconds", "gauge", "Age of the oldest waiting delivery.", [({}, ages.get("deliver", 0.0))]),
        ("delivery_seconds", "gauge", "Last image received to last report stored.", _quantiles({}, seconds)),
        (
            "classify_seconds",
            "gauge",
            "Time of a classification, by stage.",
            [sample for stage in sorted(stages) for sample in _quantiles({"stage": stage}, stages[stage])],
        ),
        ("free_disk_bytes", "gauge", "Free bytes on the disk of state_dir.", [({}, free_disk(state_dir))]),
    )
    return "".join(line for family in families for line in _family(*family))


def _quantiles(labels: dict[str, str], values: list[float]) -> list[Sample]:
    if not values:
        return []
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return [(labels | {"quantile": "0.5"}, median(ordered)), (labels | {"quantile": "0.95"}, high)]


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP veilray_{name} {text}\n# TYPE veilray_{name} {kind}\n"
    for labels, value in samples:
        escaped = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        yield f"veilray_{name}{'{' + escaped + '}' if escaped else ''} {value:g}\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
