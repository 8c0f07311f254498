"""Questions about studies and their instances that the assembler and the inference worker both ask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from .core.database import instance, study

#: Kind of the job that carries a complete study to the inference worker.
CLASSIFY = "classify"


def quiet(connection: sa.Connection, now: float, quiet_s: float) -> Sequence[sa.Row[Any]]:
    """Return the studies with unassembled content that have received nothing for `quiet_s` seconds, oldest first."""
    waiting = sa.select(study).where(
        study.c.revision > study.c.closed_revision, study.c.last_received_at <= now - quiet_s
    )
    return connection.execute(waiting.order_by(study.c.last_received_at, study.c.id)).all()


def current_instances(connection: sa.Connection, study_id: int) -> Sequence[sa.Row[Any]]:
    """Return the study's instances, of each SOP Instance UID the newest content, in order of arrival."""
    chosen = sa.select(instance).where(instance.c.study_id == study_id, instance.c.current)
    return connection.execute(chosen.order_by(instance.c.id)).all()


def instances(connection: sa.Connection, numbers: Iterable[int]) -> Sequence[sa.Row[Any]]:
    """Return the instances of these database numbers, in order of arrival."""
    chosen = sa.select(instance).where(instance.c.id.in_(list(numbers)))
    return connection.execute(chosen.order_by(instance.c.id)).all()


def inputs_key(study_id: int, hashes: Iterable[str]) -> str:
    """Return the key of the job that classifies exactly these contents: the same inputs are the same job."""
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    return f"{CLASSIFY}:{study_id}:{digest}"
