"""Where a radiologist confirms or corrects an answer; what is said there is a label for training (DICOM PS3.3 C.17.2).

No page verifies a report: that is the PACS's and the physician's. A reading trains nothing by itself: only studies of
patients who agreed are used, and sources that contradict each other make no label (`training.eligible`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import sqlalchemy as sa
from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dicom_node.core.database import Database, audit_event, label
from dicom_node.training import consent, labels
from dicom_node.training.diagnosis import Diagnosis

from . import queries
from .security import Csrf

CHOICES: Final = {
    Diagnosis.NORMAL: "No pneumonia",
    Diagnosis.BACTERIAL: "Bacterial pneumonia",
    Diagnosis.VIRAL: "Viral pneumonia",
    Diagnosis.PNEUMONIA: "Pneumonia, kind not certain",
}
LONGEST_NAME: Final = 64
ACTOR: Final = "dicom-node web: "
Before = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


@dataclass(frozen=True)
class Reading:
    """What a person said a study shows.

    Attributes
    ----------
    value : Diagnosis
    words : str
        The same for people.
    reader : str
        Who said it, as typed.
    at : float
        Seconds since the epoch.
    agrees : bool or None
        Whether it agrees with the answer on pneumonia yes or no; None where the answer left that open.
    """

    value: Diagnosis
    words: str
    reader: str
    at: float
    agrees: bool | None


def find(connection: sa.Connection, result: dict[str, Any], study_id: int) -> Reading | None:
    """Look a study's reading up; the audit trail knows who said it."""
    mine = sa.select(label).where(label.c.study_id == study_id, label.c.source == labels.READING)
    row = connection.execute(mine).one_or_none()
    if row is None:
        return None
    noted = sa.select(audit_event.c.actor, audit_event.c.detail).where(
        audit_event.c.study_id == study_id, audit_event.c.event_type == "label-recorded"
    )
    actors = [
        one.actor
        for one in connection.execute(noted.order_by(audit_event.c.seq))
        if one.detail.get("source") == labels.READING
    ]
    value = Diagnosis(row.value)
    agrees = None if result["answer"] == "undetermined" else (result["answer"] == "present") == (value != "normal")
    return Reading(value, CHOICES[value], actors[-1].removeprefix(ACTOR), row.recorded_at, agrees)


def router(database: Database, clock: Callable[[], float], templates: Jinja2Templates, csrf: Csrf) -> APIRouter:
    """Make the routes of reading.

    Parameters
    ----------
    clock : callable
        Seconds since the epoch.
    """
    routes = APIRouter()

    @routes.get("/reading")
    def to_read(request: Request, before: Before = None) -> Response:
        with database.read() as connection:
            found = queries.studies(connection, before)
            rows = [(one, find(connection, one.result, one.id)) for one in found if one.result]
        context = {"now": clock(), "rows": rows, "last": found[-1].id if len(found) == queries.PAGE else None}
        return templates.TemplateResponse(request, "readings.html", context)

    @routes.get("/studies/{number}/reading")
    def form(request: Request, number: int, said: str = "") -> Response:
        now = clock()
        with database.read() as connection:
            row = _answered(connection, number)
            reading = find(connection, row.result or {}, number)
            agreed = any(one.study_id == number for one in consent.eligible(connection, now))
            detail = queries.study_detail(connection, number)
        visitor = csrf.visitor(request)
        context = {
            "now": now, "row": row, "detail": detail, "reading": reading, "agreed": agreed, "choices": CHOICES,
            "said": said in {"recorded", "removed", "unchanged"} and said, "longest": LONGEST_NAME,
            "token": csrf.token(visitor),
        }  # fmt: skip
        response = templates.TemplateResponse(request, "reading.html", context)
        csrf.remember(response, visitor)
        return response

    @routes.post("/studies/{number}/reading")
    async def record(request: Request, number: int) -> Response:
        fields = await csrf.require(request)
        said = await run_in_threadpool(take, number, fields)
        return RedirectResponse(f"/studies/{number}/reading?said={said}", status_code=303)

    def take(number: int, fields: dict[str, str]) -> str:
        reader, choice, now = fields.get("reader", "").strip(), fields.get("reading", ""), clock()
        if not (1 <= len(reader) <= LONGEST_NAME and reader.isprintable()):
            raise HTTPException(422, f"Say who reads: a name of at most {LONGEST_NAME} characters.")
        if choice not in {*CHOICES, "none"}:
            raise HTTPException(422, "Choose what the study shows.")
        with database.write() as connection:
            _answered(connection, number)
            if choice == "none":
                return (
                    "removed" if labels.drop(connection, number, labels.READING, ACTOR + reader, now) else "unchanged"
                )
            new = labels.put(connection, number, labels.READING, Diagnosis(choice), ACTOR + reader, now)
        return "recorded" if new else "unchanged"

    return routes


def _answered(connection: sa.Connection, number: int) -> queries.StudyRow:
    rows = queries.studies(connection, only=number) if 0 < number < 2**63 else []
    if not rows:
        raise HTTPException(404, "There is no study of this number.")
    if rows[0].result is None:
        raise HTTPException(404, "This study has no answer yet that could be confirmed or corrected.")
    return rows[0]
