"""What the pages read from the site's records: numbers, states and reasons, never a patient.

Every function takes a reading connection and returns frozen rows ready to be shown. StudyInstanceUIDs leave this file
in `study_detail` alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_node.core.database import audit_event, instance, job, rejection, study

PAGE = 50
#: States of a study as a person sees them, in the order of the flow; the value explains it.
STUDY_STATES = {
    "receiving": "images may still be coming",
    "waiting": "waits for the inference worker",
    "classifying": "the inference worker has it",
    "delivering": "answered, reports on their way",
    "delivered": "reports stored at every destination",
    "answered": "answered; no destination is configured",
    "refused": "no image that the rules allow to classify",
    "failed": "the classification or a delivery needs a person",
}


@dataclass(frozen=True)
class Delivery:
    """One report on its way to one destination."""

    destination: str
    state: str
    finished_at: float | None
    sop_instance_uid: str
    title: str
    message: str | None


@dataclass(frozen=True)
class StudyRow:
    """One study, as far as a page may show it."""

    id: int
    received_at: float
    images: int
    refused: int
    state: str
    result: dict[str, Any] | None
    deliveries: tuple[Delivery, ...]
    seconds: float | None
    reason: str | None

    @property
    def delivered_to(self) -> tuple[str, ...]:
        """Destinations that hold every report of the answer."""
        missing = {one.destination for one in self.deliveries if one.state != "done"}
        return tuple(dict.fromkeys(one.destination for one in self.deliveries if one.destination not in missing))


@dataclass(frozen=True)
class StudyDetail:
    """Everything the records hold of one study."""

    row: StudyRow
    study_instance_uid: str
    first_received_at: float
    revision: int
    images: Sequence[sa.Row[Any]]
    jobs: Sequence[sa.Row[Any]]
    events: Sequence[sa.Row[Any]]


@dataclass(frozen=True)
class JobRow:
    """One job, as a page shows it."""

    id: int
    kind: str
    study_id: int | None
    state: str
    attempts: int
    created_at: float
    run_at: float
    finished_at: float | None
    lease_owner: str | None
    lease_expires_at: float | None
    code: str | None
    message: str | None
    destination: str | None


@dataclass(frozen=True)
class Backlog:
    """How much work stands where."""

    counts: dict[tuple[str, str], int]
    oldest_waiting: dict[str, float]
    oldest_lease_expiry: float | None
    retrying_deliveries: dict[str, int]
    failed_deliveries: dict[str, int]
    workers: tuple[str, ...]

    def total(self, *states: str) -> int:
        """Count the jobs in any of `states`."""
        return sum(count for (_, state), count in self.counts.items() if state in states)


def studies(
    connection: sa.Connection, before: int | None = None, only: int | None = None, limit: int = PAGE
) -> list[StudyRow]:
    """Return studies, the newest first.

    Parameters
    ----------
    before : int, optional
        Database number; only older studies are returned.
    only : int, optional
        Database number of the one study that is wanted.
    """
    newest = sa.select(study).order_by(study.c.id.desc()).limit(limit)
    if before is not None:
        newest = newest.where(study.c.id < before)
    if only is not None:
        newest = newest.where(study.c.id == only)
    found = connection.execute(newest).all()
    numbers = [row.id for row in found]
    images: dict[int, list[Any]] = defaultdict(list)
    for row in connection.execute(sa.select(instance).where(instance.c.study_id.in_(numbers)).order_by(instance.c.id)):
        images[row.study_id].append(row)
    work: dict[int, list[Any]] = defaultdict(list)
    for row in connection.execute(sa.select(job).where(job.c.study_id.in_(numbers)).order_by(job.c.id)):
        work[row.study_id].append(row)
    return [_study_row(row, images[row.id], work[row.id]) for row in found]


def study_detail(connection: sa.Connection, number: int) -> StudyDetail | None:
    """Return everything about one study, or None where there is none of this number."""
    found = connection.execute(sa.select(study).where(study.c.id == number)).one_or_none()
    if found is None:
        return None
    mine = sa.select(instance).where(instance.c.study_id == number).order_by(instance.c.id)
    work = sa.select(job).where(job.c.study_id == number).order_by(job.c.id.desc())
    events = sa.select(audit_event).where(audit_event.c.study_id == number).order_by(audit_event.c.seq.desc())
    return StudyDetail(
        row=studies(connection, only=number)[0],
        study_instance_uid=found.study_instance_uid,
        first_received_at=found.first_received_at,
        revision=found.revision,
        images=connection.execute(mine).all(),
        jobs=connection.execute(work).all(),
        events=connection.execute(events.limit(PAGE)).all(),
    )


def refusals(connection: sa.Connection, code: str | None = None, limit: int = 2 * PAGE) -> Sequence[sa.Row[Any]]:
    """Return images that are kept but not classified, the newest first."""
    chosen = sa.select(instance).where(instance.c.refusal_code.is_not(None)).order_by(instance.c.id.desc()).limit(limit)
    return connection.execute(chosen if code is None else chosen.where(instance.c.refusal_code == code)).all()


def rejections(connection: sa.Connection, code: str | None = None, limit: int = 2 * PAGE) -> Sequence[sa.Row[Any]]:
    """Return objects that were not accepted, the newest first."""
    chosen = sa.select(rejection).order_by(rejection.c.id.desc()).limit(limit)
    return connection.execute(chosen if code is None else chosen.where(rejection.c.code == code)).all()


def refusal_codes(connection: sa.Connection) -> dict[str, int]:
    """Count the images kept but not classified, by reason."""
    code = instance.c.refusal_code
    rows = connection.execute(sa.select(code, sa.func.count()).where(code.is_not(None)).group_by(code).order_by(code))
    return {row[0]: row[1] for row in rows}


def rejection_codes(connection: sa.Connection) -> dict[tuple[str, int], int]:
    """Count the objects not accepted, by reason and DIMSE status."""
    keys = (rejection.c.code, rejection.c.status)
    rows = connection.execute(sa.select(*keys, sa.func.count()).group_by(*keys).order_by(*keys))
    return {(row[0], row[1]): row[2] for row in rows}


def jobs(
    connection: sa.Connection, states: Iterable[str], before: int | None = None, limit: int = 2 * PAGE
) -> list[JobRow]:
    """Return jobs in any of `states`, the newest first; `before` is a job number, only older jobs are returned."""
    columns = [column for column in job.c if column.name not in ("key", "result")]
    chosen = sa.select(*columns).where(job.c.state.in_(tuple(states))).order_by(job.c.id.desc()).limit(limit)
    if before is not None:
        chosen = chosen.where(job.c.id < before)
    rows = []
    for row in connection.execute(chosen).mappings():
        fields = dict(row)
        destination = fields.pop("payload").get("destination")
        rows.append(JobRow(**fields, destination=destination))
    return rows


def backlog(connection: sa.Connection) -> Backlog:
    """Return how much work stands where."""
    counted = sa.select(job.c.kind, job.c.state, sa.func.count()).group_by(job.c.kind, job.c.state)
    waiting = sa.select(job.c.kind, sa.func.min(job.c.created_at)).where(job.c.state == "waiting").group_by(job.c.kind)
    leases = sa.select(job.c.lease_owner, job.c.lease_expires_at).where(job.c.state == "leased")
    troubled = sa.select(job.c.payload, job.c.state).where(
        job.c.kind == "deliver",
        sa.or_(job.c.state == "failed", sa.and_(job.c.state == "waiting", job.c.code.is_not(None))),
    )
    held = connection.execute(leases).all()
    deliveries = Counter((row.state, str(row.payload.get("destination"))) for row in connection.execute(troubled))
    return Backlog(
        counts={(row[0], row[1]): row[2] for row in connection.execute(counted)},
        oldest_waiting={row[0]: row[1] for row in connection.execute(waiting)},
        oldest_lease_expiry=min((row.lease_expires_at for row in held), default=None),
        retrying_deliveries={where: count for (state, where), count in deliveries.items() if state == "waiting"},
        failed_deliveries={where: count for (state, where), count in deliveries.items() if state == "failed"},
        workers=tuple(sorted({row.lease_owner for row in held})),
    )


def audit_rows(connection: sa.Connection, before: int | None = None, limit: int = PAGE) -> Sequence[sa.Row[Any]]:
    """Return rows of the audit trail, the newest first; `before` is a row number, only older rows are returned."""
    chosen = sa.select(audit_event).order_by(audit_event.c.seq.desc()).limit(limit)
    return connection.execute(chosen if before is None else chosen.where(audit_event.c.seq < before)).all()


def newest_result(connection: sa.Connection) -> dict[str, Any] | None:
    """Return the newest answer's result, which names model and engine, or None before the first answer."""
    done = sa.select(job.c.result).where(job.c.kind == "classify", job.c.state == "done")
    result: dict[str, Any] | None = connection.execute(done.order_by(job.c.id.desc()).limit(1)).scalar_one_or_none()
    return result


def recent_results(connection: sa.Connection, limit: int = 2 * PAGE) -> list[dict[str, Any]]:
    """Return the results of the newest answers."""
    done = sa.select(job.c.result).where(job.c.kind == "classify", job.c.state == "done")
    return list(connection.execute(done.order_by(job.c.id.desc()).limit(limit)).scalars())


def _study_row(row: sa.Row[Any], images: list[Any], work: list[Any]) -> StudyRow:
    current = [one for one in images if one.current]
    refused = sum(one.refusal_code is not None for one in current)
    classify = [one for one in work if one.kind == "classify"]
    answered = [one for one in classify if one.state == "done"]
    result = answered[-1].result if answered else None
    deliveries = _deliveries(result, work)
    state = _study_state(row, classify, deliveries, bool(current) and refused == len(current))
    stopped = [one.message for one in (*classify[-1:], *deliveries) if one.state in ("failed", "refused", "waiting")]
    reasons = [*stopped, *(one.refusal for one in current if state == "refused")]
    return StudyRow(
        id=row.id,
        received_at=row.last_received_at,
        images=len(current),
        refused=refused,
        state=state,
        result=result,
        deliveries=deliveries,
        seconds=_seconds_to_delivery(result, images, deliveries),
        reason=next((reason for reason in reasons if reason), None),
    )


def _deliveries(result: dict[str, Any] | None, work: list[Any]) -> tuple[Delivery, ...]:
    titles = {one["sop_instance_uid"]: one["title"] for one in (result or {}).get("reports", [])}
    mine = [one for one in work if one.kind == "deliver" and one.payload["sop_instance_uid"] in titles]
    return tuple(
        Delivery(
            destination=one.payload["destination"],
            state=one.state,
            finished_at=one.finished_at,
            sop_instance_uid=one.payload["sop_instance_uid"],
            title=titles[one.payload["sop_instance_uid"]],
            message=one.message,
        )
        for one in mine
    )


def _study_state(row: sa.Row[Any], classify: list[Any], deliveries: tuple[Delivery, ...], all_refused: bool) -> str:
    """Name the state by the newest work; a study that changed after its answer is again on its way."""
    if row.closed_revision < row.revision:
        return "receiving"
    if not classify:
        return "refused" if all_refused else "waiting"
    newest = classify[-1].state
    if newest != "done":
        return "classifying" if newest == "leased" else str(newest)
    states = {one.state for one in deliveries}
    if states & {"failed", "refused"}:
        return "failed"
    if not states:
        return "answered"
    return "delivered" if states == {"done"} else "delivering"


def _seconds_to_delivery(
    result: dict[str, Any] | None, images: list[Any], deliveries: tuple[Delivery, ...]
) -> float | None:
    """Seconds from the last image of the answer to its last delivery, the quiet period included."""
    finished = [one.finished_at for one in deliveries if one.state == "done" and one.finished_at is not None]
    if result is None or len(finished) < len(deliveries) or not finished:
        return None
    received = [one.received_at for one in images if one.id in set(result["images"])]
    return max(finished) - max(received) if received else None
