"""Looks into a site's records from outside: what became of a study."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..core.database import Database, instance, job, study
from ..core.errors import Unavailable
from ..study import CLASSIFY

CLOSED = ("done", "refused", "failed")


@dataclass(frozen=True)
class Seen:
    """A study whose jobs are all closed.

    Attributes
    ----------
    classified : list
        Its `classify` jobs, oldest first.
    delivered : list
        Its `deliver` jobs.
    refusals : list of str
        Reasons why single images were refused.
    """

    classified: list[sa.Row[Any]]
    delivered: list[sa.Row[Any]]
    refusals: list[str]

    @property
    def newest(self) -> sa.Row[Any]:
        """The newest classification."""
        return self.classified[-1]

    @property
    def finished_at(self) -> float:
        """When the last of its jobs was closed, seconds since the epoch."""
        return float(max(row.finished_at for row in (*self.classified, *self.delivered)))


def look(database: Database, study_instance_uid: str) -> Seen | None:
    """Return what became of a study; None while anything of it is still to be done."""
    with database.read() as connection:
        row = connection.execute(sa.select(study).where(study.c.study_instance_uid == study_instance_uid)).one_or_none()
        if row is None or row.revision != row.closed_revision:
            return None
        mine = sa.select(job).where(job.c.study_id == row.id).order_by(job.c.id)
        jobs = connection.execute(mine).all()
        why = sa.select(instance.c.refusal).where(instance.c.study_id == row.id, instance.c.refusal.is_not(None))
        refusals = list(connection.execute(why).scalars())
    if not jobs or any(one.state not in CLOSED for one in jobs):
        return None
    return Seen([one for one in jobs if one.kind == CLASSIFY], [one for one in jobs if one.kind != CLASSIFY], refusals)


def follow(
    url: str, study_instance_uids: Iterable[str], timeout_s: float, poll_s: float = 0.05
) -> Iterator[tuple[str, Seen]]:
    """Yield each study with what became of it, in the order given.

    Raises
    ------
    Unavailable
        A study is not closed `timeout_s` seconds after this function was called.
    """
    deadline = time.monotonic() + timeout_s
    database = Database(url)
    try:
        for uid in study_instance_uids:
            while (seen := look(database, uid)) is None:
                if time.monotonic() > deadline:
                    raise Unavailable(f"a study had no answer within {timeout_s:g} s: see the logs of the services")
                time.sleep(poll_s)
            yield uid, seen
    finally:
        database.close()
