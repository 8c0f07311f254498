"""The database side of receiving: one row per content, its study's revision and its audit record, in one transaction.

Several associations that finish at once share one transaction (`GroupCommit`), because a durable commit costs the
same for one instance as for ten.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from .core import audit
from .core.audit import Event, Outcome, Record
from .core.database import Database, instance, rejection, study
from .core.errors import RejectedInstance
from .part10 import Identity

T = TypeVar("T")
#: Refusal code of an instance that was acknowledged and whose file is gone.
FILE_MISSING = "file-missing"

# Built once: composing a statement costs more than running it.
_SAME = sa.select(instance.c.id, instance.c.study_id).where(
    instance.c.sop_instance_uid == sa.bindparam("uid"), instance.c.sha256 == sa.bindparam("digest")
)
_REPLACE = (
    instance.update()
    .where(instance.c.sop_instance_uid == sa.bindparam("uid"))
    .values(current=False, conflict=True)
    .returning(instance.c.id, instance.c.study_id)
)
_INSERT = instance.insert().returning(instance.c.id)
_TOUCH = {
    dialect.__name__.rpartition(".")[2]: (inserted := dialect.insert(study))
    .on_conflict_do_update(
        index_elements=["study_instance_uid"],
        set_={"revision": study.c.revision + 1, "last_received_at": inserted.excluded.last_received_at},
    )
    .returning(study.c.id)
    for dialect in (sqlite, postgresql)
}


@dataclass(frozen=True)
class Received:
    """An instance that is in the store and in the records.

    Attributes
    ----------
    new : bool
        False when the same content had been received before: nothing changed.
    """

    instance_id: int
    study_id: int
    sha256: str
    new: bool


@dataclass(frozen=True)
class Content:
    """What is to be recorded of one received instance."""

    identity: Identity
    transfer_syntax_uid: str
    sha256: str
    size: int
    source: str


def known(connection: sa.Connection, sop_instance_uid: str, sha256: str) -> Received | None:
    """Return the instance if this very content has been received before."""
    row = connection.execute(_SAME, {"uid": sop_instance_uid, "digest": sha256}).one_or_none()
    return Received(row.id, row.study_id, sha256, new=False) if row is not None else None


def add(connection: sa.Connection, content: Content, now: float) -> Received:
    """Record one instance: the study's revision grows, and other content under the same UID stops being current."""
    identity = content.identity
    earlier = known(connection, identity.sop_instance_uid, content.sha256)
    if earlier is not None:
        found_again(connection, earlier.instance_id, now)
        return earlier
    study_id = _touch_study(connection, identity.study_instance_uid, now)
    replaced = connection.execute(_REPLACE, {"uid": identity.sop_instance_uid}).all()
    row = {
        "study_id": study_id,
        "series_instance_uid": identity.series_instance_uid,
        "sop_instance_uid": identity.sop_instance_uid,
        "sop_class_uid": identity.sop_class_uid,
        "transfer_syntax_uid": content.transfer_syntax_uid,
        "sha256": content.sha256,
        "size": content.size,
        "source": content.source,
        "received_at": now,
        "current": True,
        "conflict": bool(replaced),
    }
    instance_id = connection.execute(_INSERT, row).scalar_one()
    detail: dict[str, Any] = {"instance_id": instance_id, "bytes": content.size}
    _note(connection, "instance-received", content.source, study_id, detail, now)
    if replaced:
        detail = {"instance_id": instance_id, "other_content": sorted(row.id for row in replaced)}
        outcome = Outcome.MINOR_FAILURE
        _note(connection, "instance-conflict", content.source, study_id, detail, now, outcome)
    for other in {row.study_id for row in replaced} - {study_id}:  # an image that moved leaves its old study changed
        connection.execute(study.update().where(study.c.id == other).values(revision=study.c.revision + 1))
    return Received(instance_id, study_id, content.sha256, new=True)


def found_again(connection: sa.Connection, instance_id: int, now: float) -> None:
    """Take back that an instance's file is missing, and let its study be assembled anew."""
    healed = (
        instance.update()
        .where(instance.c.id == instance_id, instance.c.refusal_code == FILE_MISSING)
        .values(refusal_code=None, refusal=None)
        .returning(instance.c.study_id)
    )
    for row in connection.execute(healed).all():
        grown = study.update().where(study.c.id == row.study_id)
        connection.execute(grown.values(revision=study.c.revision + 1, last_received_at=now))


def reject(connection: sa.Connection, error: RejectedInstance, sop_class_uid: str, source: str, now: float) -> None:
    """Record what was not kept, and why, for the administrator."""
    row = {
        "at": now,
        "source": source,
        "sop_class_uid": sop_class_uid[:64],
        "status": error.status,
        "code": error.code,
        "message": str(error)[:400],
    }
    connection.execute(rejection.insert().values(**row))
    detail = {"code": error.code, "status": f"0x{error.status:04X}"}
    _note(connection, "instance-rejected", source, None, detail, now, Outcome.MINOR_FAILURE)


def alert(connection: sa.Connection, what: str, source: str, detail: dict[str, Any], now: float) -> None:
    """Record a security alert (PS3.15 A.5.3.11)."""
    record = Record(Event.SECURITY_ALERT, what, "E", source, Outcome.SERIOUS_FAILURE, None, detail)
    audit.append(connection, record, now)


def _touch_study(connection: sa.Connection, study_instance_uid: str, now: float) -> int:
    values = {"study_instance_uid": study_instance_uid, "revision": 1, "closed_revision": 0}
    grown = _TOUCH[connection.dialect.name]
    return int(connection.execute(grown, {**values, "first_received_at": now, "last_received_at": now}).scalar_one())


def _note(
    connection: sa.Connection,
    what: str,
    source: str,
    study_id: int | None,
    detail: dict[str, Any],
    now: float,
    outcome: Outcome = Outcome.SUCCESS,
) -> None:
    record = Record(Event.INSTANCES_TRANSFERRED, what, "C", source, outcome, study_id, detail)
    audit.append(connection, record, now)


class _Waiting:
    """One caller's work and, once it is done, its outcome."""

    def __init__(self, work: Callable[[sa.Connection], Any]) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class GroupCommit:
    """Commits the work of concurrent threads in shared transactions; each call returns once its own is durable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: list[_Waiting] = []
        self._enter = threading.Lock()
        self._lead = threading.Lock()

    def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do `work` in a writing transaction; what it raises is raised here and leaves no trace in the records."""
        mine = _Waiting(work)
        with self._enter:
            self._queue.append(mine)
        with self._lead:  # whoever waits here finds its work done by the one before it, or leads the next group
            if not mine.done:
                with self._enter:
                    group, self._queue = self._queue, []
                self._commit(group)
        if mine.error is not None:
            raise mine.error
        return cast("T", mine.result)

    def _commit(self, group: list[_Waiting]) -> None:
        try:
            with self._database.write() as connection:
                for one in group:
                    one.result = one.work(connection)
        except BaseException as error:
            if len(group) == 1:
                group[0].error = error
            else:  # the whole group was rolled back: do each alone, so that only the faulty one fails
                for one in group:
                    self._commit([one])
        for one in group:
            one.done = True
