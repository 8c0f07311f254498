"""Leased jobs: work survives any crash, is held by one worker at a time and is finished exactly once in the records.

States::

    waiting ──lease──▶ leased ──finish──▶ done
       ▲                 │ ├───refuse───▶ refused   policy says no: closed, never retried
       └────retry────────┘ └───fail─────▶ failed    left to a person, who may `requeue` it

A worker whose lease expired has lost the job: its `finish`, `retry`, `refuse` or `fail` raises `LeaseLost`, and the
transaction it was part of is rolled back with everything else it wrote.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from .database import Database, job
from .errors import Unavailable, VeilRayError

STATES = ("waiting", "leased", "done", "refused", "failed")


class LeaseLost(Unavailable):
    """Another worker holds the job now; what this one did is rolled back."""

    code = "lease-lost"


@dataclass(frozen=True)
class Job:
    """A leased piece of work."""

    id: int
    kind: str
    key: str
    study_id: int | None
    payload: dict[str, Any]
    attempts: int
    created_at: float
    owner: str


def owner_name(part: str) -> str:
    """Name a worker of this process so that no other process or host has the same name."""
    return f"{_host()}/{os.getpid()}/{part}"


def release_dead(database: Database, now: float) -> int:
    """Give back at once the jobs of this host's processes that are gone, instead of waiting for their leases to end.

    Services call it when they start. Should it misjudge (two containers of one host name see different processes),
    the job is done twice and recorded once: the slower holder meets `LeaseLost`.

    Returns
    -------
    int
        How many jobs wait again.
    """
    held = sa.select(job.c.id, job.c.lease_owner).where(
        job.c.state == "leased", job.c.lease_owner.startswith(_host() + "/")
    )
    with database.write() as connection:
        dead = [row.id for row in connection.execute(held) if not _alive(row.lease_owner.split("/")[1])]
        again = job.update().where(job.c.id.in_(dead)).values(lease_expires_at=now - 1.0)
        connection.execute(again)
    return len(dead)


def _host() -> str:
    return socket.gethostname().replace("/", "-")[:40]


def _alive(process: str) -> bool:
    return process.isdecimal() and Path("/proc", process).exists()


def add(
    connection: sa.Connection, kind: str, key: str, payload: dict[str, Any], now: float, study_id: int | None = None
) -> bool:
    """Add work inside the caller's transaction; the same `key` a second time changes nothing.

    Returns
    -------
    bool
        Whether the job is new.
    """
    values = {
        "kind": kind,
        "key": key,
        "study_id": study_id,
        "state": "waiting",
        "payload": payload,
        "attempts": 0,
        "created_at": now,
        "run_at": now,
    }
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(job).values(**values).on_conflict_do_nothing(index_elements=["key"])
    return connection.execute(statement.returning(job.c.id)).one_or_none() is not None


def lease(database: Database, kinds: tuple[str, ...], owner: str, seconds: float, now: float) -> Job | None:
    """Take the oldest due job of the given kinds, or one whose holder has gone silent.

    Parameters
    ----------
    owner : str
        Unique name of the taking worker, e.g. host, process and thread.
    seconds : float
        How long the job is held without a `heartbeat`.
    """
    due = (
        sa.select(job.c.id)
        .where(
            job.c.kind.in_(kinds),
            sa.or_(
                sa.and_(job.c.state == "waiting", job.c.run_at <= now),
                sa.and_(job.c.state == "leased", job.c.lease_expires_at < now),
            ),
        )
        .order_by(job.c.run_at, job.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer and ignores it
    )
    with database.read() as connection:  # most looks find nothing: they must not take the write lock
        if connection.execute(due.with_only_columns(job.c.id)).first() is None:
            return None
    take = (
        job.update()
        .where(job.c.id == due.scalar_subquery())
        .values(state="leased", lease_owner=owner, lease_expires_at=now + seconds, attempts=job.c.attempts + 1)
        .returning(job.c.id, job.c.kind, job.c.key, job.c.study_id, job.c.payload, job.c.attempts, job.c.created_at)
    )
    with database.write() as connection:
        row = connection.execute(take).one_or_none()
    return Job(**row._mapping, owner=owner) if row is not None else None


def heartbeat(database: Database, held: Job, seconds: float, now: float) -> None:
    """Hold the job for `seconds` more.

    Raises
    ------
    LeaseLost
        Another worker has taken it.
    """
    with database.write() as connection:
        _change(connection, held, {"lease_expires_at": now + seconds})


def finish(connection: sa.Connection, held: Job, result: dict[str, Any], now: float) -> None:
    """Close the job as done, in the transaction that also writes what follows from it."""
    _change(connection, held, {"state": "done", "result": result, "finished_at": now, "code": None, "message": None})


def refuse(connection: sa.Connection, held: Job, error: VeilRayError, now: float) -> None:
    """Close the job because policy says no."""
    _close(connection, held, "refused", error, now)


def fail(connection: sa.Connection, held: Job, error: VeilRayError, now: float) -> None:
    """Leave the job to a person."""
    _close(connection, held, "failed", error, now)


def retry(connection: sa.Connection, held: Job, error: VeilRayError, run_at: float) -> None:
    """Put the job back until `run_at`."""
    _change(connection, held, {"state": "waiting", "run_at": run_at, "code": error.code, "message": str(error)[:400]})


def requeue(connection: sa.Connection, job_id: int, now: float) -> bool:
    """Give a failed job another life at a person's wish; false when it is not a failed one."""
    again = job.update().where(job.c.id == job_id, job.c.state == "failed")
    return connection.execute(again.values(state="waiting", run_at=now, attempts=0, finished_at=None)).rowcount == 1


def backoff(attempts: int, first: float, longest: float) -> float:
    """Pause before the next try: doubles with every attempt, in seconds."""
    return float(min(longest, first * 2 ** min(attempts - 1, 30)))


def _close(connection: sa.Connection, held: Job, state: str, error: VeilRayError, now: float) -> None:
    _change(connection, held, {"state": state, "finished_at": now, "code": error.code, "message": str(error)[:400]})


def _change(connection: sa.Connection, held: Job, values: dict[str, Any]) -> None:
    if "state" in values:
        values |= {"lease_owner": None, "lease_expires_at": None}
    mine = sa.and_(
        job.c.id == held.id,
        job.c.state == "leased",
        job.c.lease_owner == held.owner,
        job.c.attempts == held.attempts,  # the same worker may have lost it and taken it again
    )
    if connection.execute(job.update().where(mine).values(**values)).rowcount != 1:
        raise LeaseLost(f"job {held.id} is no longer held by this worker")
