"""Decides when a study is complete and hands what may be classified to the inference worker (IHE SWF: no end signal).

DICOM has no "study complete": a study is taken as complete once it was quiet for a while and no association that
carried it is open. Images that come later make a new revision, and the same inputs never make a second job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from . import selection
from . import study as studies
from .core import audit, jobs, logs
from .core.audit import Event, Outcome, Record
from .core.database import Database, instance, job, study
from .core.errors import IntegrityError, Refused, Unavailable, VeilRayError
from .core.failpoint import reach
from .core.settings import Population, Settings
from .store import Store

log = logs.get(__name__)
#: Of several refusals in a study, the one of the image that came furthest tells most; a damaged file tells more.
TELLING = (
    *("modality", "for-processing", "localizer", "non-human", "body-part-missing", "body-part"),
    *("view-missing", "view", "age-missing", "age", "malformed", "unreadable", "file-missing", "integrity"),
)


@dataclass(frozen=True)
class _Judged:
    """A study's current instances, divided."""

    eligible: list[sa.Row[Any]]
    refused: dict[int, VeilRayError]  # newly, by instance
    reasons: list[tuple[str, str]]  # all, also of earlier rounds: code and sentence


class Assembler:
    """Turns quiet studies into `classify` jobs.

    Parameters
    ----------
    settings : Settings
        The sections ``assembler`` and ``selection`` are used.
    open_studies : callable
        Study Instance UIDs that open associations carry.
    population : Population or None
        Whom the active model was made for; None leaves that judgement to the worker, which has the model card.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        *,
        open_studies: Callable[[], set[str]],
        population: Population | None = None,
    ) -> None:
        self._quiet_s = settings.assembler.quiet_s
        self._rules = settings.selection
        self._population = population
        self._database = database
        self._store = store
        self._open_studies = open_studies

    def run_once(self, now: float) -> bool:
        """Assemble every study that is complete at `now` (seconds since the epoch); false when none was.

        Raises
        ------
        Unavailable
            Disk or database could not serve at least one of them; the others are assembled.
        """
        with self._database.read() as connection:
            candidates = studies.quiet(connection, now, self._quiet_s)
        if not candidates:
            return False
        carried = self._open_studies()
        complete = [row for row in candidates if row.study_instance_uid not in carried]
        failed: Unavailable | None = None
        for row in complete:
            try:
                self._assemble(row, now)
            except Unavailable as error:  # what cannot be judged now must not hold up the other studies
                log.warning("study-not-assembled", study_id=row.id, **logs.describe(error))
                failed = error
        if failed is not None:
            raise failed
        return bool(complete)

    def _assemble(self, row: sa.Row[Any], now: float) -> None:
        with self._database.read() as connection:
            instances = studies.current_instances(connection, row.id)
        judged = self._judge(instances)
        reach("assembler-judged")
        with self._database.write() as connection:
            closed = (
                study.update()
                .where(study.c.id == row.id, study.c.closed_revision < row.revision)
                .values(closed_revision=row.revision)
            )
            if connection.execute(closed).rowcount == 0:
                return  # another assembler was faster
            self._note_refusals(connection, row.id, judged, now)
            if judged.eligible:
                key = studies.inputs_key(row.id, (one.sha256 for one in judged.eligible))
                payload = {"instances": [one.id for one in judged.eligible], "revision": row.revision}
                new = jobs.add(connection, studies.CLASSIFY, key, payload, now, row.id)
            else:
                new = bool(instances) and self._add_refused(connection, row, instances, judged, now)
            if new:
                detail = {"revision": row.revision, "images": len(instances), "eligible": len(judged.eligible)}
                record = Record(
                    Event.APPLICATION_ACTIVITY, "study-complete", "E", "assembler", study_id=row.id, detail=detail
                )
                audit.append(connection, record, now)
        reach("assembler-committed")
        log.info("study-complete", study_id=row.id, revision=row.revision, count=len(judged.eligible))

    def _judge(self, instances: Sequence[sa.Row[Any]]) -> _Judged:
        judged = _Judged([], {}, [])
        for row in instances:
            if row.refusal_code is not None:
                judged.reasons.append((row.refusal_code, row.refusal))
                continue
            try:
                selection.judge(self._store.dataset(row.sha256), self._rules, self._population)
                judged.eligible.append(row)
            except (Refused, IntegrityError) as error:  # a damaged file fails alone, not the site
                judged.refused[row.id] = error
                judged.reasons.append((error.code, str(error)))
        return judged

    def _note_refusals(self, connection: sa.Connection, study_id: int, judged: _Judged, now: float) -> None:
        for number, error in judged.refused.items():
            refused = instance.update().where(instance.c.id == number)
            connection.execute(refused.values(refusal_code=error.code, refusal=str(error)[:400]))
            damaged = isinstance(error, IntegrityError)
            event = Event.SECURITY_ALERT if damaged else Event.INSTANCES_ACCESSED
            outcome = Outcome.MAJOR_FAILURE if damaged else Outcome.MINOR_FAILURE
            detail = {"instance_id": number, "code": error.code}
            audit.append(connection, Record(event, "image-refused", "R", "assembler", outcome, study_id, detail), now)

    def _add_refused(
        self,
        connection: sa.Connection,
        row: sa.Row[Any],
        instances: Sequence[sa.Row[Any]],
        judged: _Judged,
        now: float,
    ) -> bool:
        """Add a job that is closed from the start, so that the study and its reason stand where all others stand."""
        key = studies.inputs_key(row.id, ("nothing eligible", *(one.sha256 for one in instances)))
        payload = {"instances": [], "revision": row.revision}
        if not jobs.add(connection, studies.CLASSIFY, key, payload, now, row.id):
            return False
        code, reason = max(judged.reasons, key=lambda each: TELLING.index(each[0]) if each[0] in TELLING else -1)
        closed = job.update().where(job.c.key == key)
        connection.execute(closed.values(state="refused", finished_at=now, code=code, message=reason[:400]))
        return True
