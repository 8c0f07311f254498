"""The routes: each reads the records once, fills one template, and changes nothing but by the button "Try again"."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dicom_node.core import audit, jobs
from dicom_node.core.audit import Event, Outcome, Record
from dicom_node.core.database import Database, job
from dicom_node.core.errors import IntegrityError
from dicom_node.core.settings import Settings

from . import monitoring, queries
from .security import Csrf

Number = Annotated[int | None, Query(ge=1, le=2**63 - 1)]
#: What the Jobs page can be narrowed to; the first is shown unasked.
JOB_VIEWS = {
    "open": ("waiting", "leased", "failed"),
    "waiting": ("waiting",),
    "leased": ("leased",),
    "failed": ("failed",),
    "done": ("done",),
    "refused": ("refused",),
}
VERIFY_EVERY_S = 60.0  # the whole chain is read: a page that is loaded again shows the newest verdict and its time


@dataclass(frozen=True)
class Verdict:
    """What `audit.verify` found, and when."""

    at: float
    ok: bool
    count: int
    head: str
    sentence: str


class AuditVerifier:
    """Verifies the audit chain, at most once in `VERIFY_EVERY_S` seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._newest: Verdict | None = None

    def look(self, now: float) -> Verdict:
        """Return the verdict at `now`, seconds since the epoch."""
        with self._lock:
            if self._newest is None or not 0 <= now - self._newest.at < VERIFY_EVERY_S:
                self._newest = self._verify(now)
            return self._newest

    def _verify(self, now: float) -> Verdict:
        try:
            with self._database.read() as connection:
                count, newest = audit.verify(connection)
        except IntegrityError as error:
            return Verdict(now, False, 0, "", str(error))
        return Verdict(now, True, count, newest, "Every row follows from the row before it.")


def router(
    settings: Settings, database: Database, clock: Callable[[], float], templates: Jinja2Templates, csrf: Csrf
) -> APIRouter:
    """Make all routes.

    Parameters
    ----------
    clock : callable
        Seconds since the epoch.
    """
    routes = APIRouter()
    health = monitoring.HealthProbe(settings, database)
    verifier = AuditVerifier(database)

    def page(request: Request, name: str, **context: Any) -> Response:
        return templates.TemplateResponse(request, name, {"now": clock(), **context})

    @routes.get("/")
    def studies(request: Request, before: Number = None) -> Response:
        with database.read() as connection:
            rows = queries.studies(connection, before)
        return page(request, "studies.html", rows=rows, before=before, full=len(rows) == queries.PAGE)

    @routes.get("/studies/{number}")
    def study(request: Request, number: int) -> Response:
        with database.read() as connection:
            detail = queries.study_detail(connection, number) if 0 < number < 2**63 else None
        if detail is None:
            raise HTTPException(404, "There is no study of this number.")
        return page(request, "study.html", detail=detail)

    @routes.get("/refusals")
    def refusals(request: Request, code: Annotated[str, Query(max_length=64)] = "") -> Response:
        with database.read() as connection:
            refused = queries.refusals(connection, code or None)
            rejected = queries.rejections(connection, code or None)
            codes = dict.fromkeys(queries.refusal_codes(connection))
            codes |= {known: None for known, _ in queries.rejection_codes(connection)}
        lists = {"refused": refused, "rejected": rejected, "codes": sorted(codes), "code": code}
        return page(request, "refusals.html", most=2 * queries.PAGE, **lists)

    @routes.get("/jobs")
    def job_list(request: Request, view: str = "open", before: Number = None, again: Number = None) -> Response:
        if view not in JOB_VIEWS:
            raise HTTPException(404, "There is no such list of jobs.")
        with database.read() as connection:
            rows = queries.jobs(connection, JOB_VIEWS[view], before)
            backlog = queries.backlog(connection)
        visitor = csrf.visitor(request)
        totals = {name: backlog.total(*states) for name, states in JOB_VIEWS.items()}
        shown = {"rows": rows, "view": view, "totals": totals, "again": again, "full": len(rows) == 2 * queries.PAGE}
        response = page(request, "jobs.html", token=csrf.token(visitor), **shown)
        csrf.remember(response, visitor)
        return response

    @routes.post("/jobs/{number}/again")
    async def try_again(request: Request, number: int) -> Response:
        await csrf.require(request)
        if not (0 < number < 2**63 and await run_in_threadpool(requeue, number)):
            raise HTTPException(409, "The job is not a failed one any more: reload the list to see its state.")
        return RedirectResponse(f"/jobs?again={number}", status_code=303)

    def requeue(number: int) -> bool:
        now = clock()
        with database.write() as connection:
            if not jobs.requeue(connection, number, now):
                return False
            found = connection.execute(job.select().where(job.c.id == number)).one()
            detail = {"job": number, "kind": found.kind}
            what = (Event.APPLICATION_ACTIVITY, "job-requeued", "U", "dicom-node web", Outcome.SUCCESS)
            audit.append(connection, Record(*what, found.study_id, detail), now)
        return True

    @routes.get("/audit")
    def audit_trail(request: Request, before: Number = None) -> Response:
        verdict = verifier.look(clock())
        with database.read() as connection:
            rows = queries.audit_rows(connection, before)
        return page(request, "audit.html", verdict=verdict, rows=rows, before=before)

    @routes.get("/status")
    def status(request: Request) -> Response:
        found = health.look(clock())
        with database.read() as connection:
            backlog = queries.backlog(connection)
            result = queries.newest_result(connection)
        return page(request, "status.html", health=found, backlog=backlog, result=result, settings=settings)

    @routes.get("/healthz")
    def healthz() -> Response:
        found = health.look(clock())
        return JSONResponse(found.as_json(), status_code=200 if found.ok else 503)

    @routes.get("/metrics")
    def metrics() -> Response:
        with database.read() as connection:
            text = monitoring.metrics(connection, settings.site.state_dir, clock())
        return PlainTextResponse(text, media_type=monitoring.CONTENT_TYPE)

    return routes
