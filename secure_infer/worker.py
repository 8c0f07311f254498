"""From a complete study to its reports: leases `classify` jobs, runs the engine, writes the SR and queues its delivery.

The order makes any crash harmless. Reports are deterministic (same inputs, same bytes), their files are durable before
the transaction that closes the job, and that one transaction also adds the deliveries. A worker killed anywhere
before it leaves the job leased: the next holder writes the same report again, under the same SOP Instance UID.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_node import pixels, selection
from dicom_node.core import audit, jobs, logs
from dicom_node.core.audit import Event, Outcome, Record
from dicom_node.core.database import Database, instance, job
from dicom_node.core.errors import IntegrityError, Refused, Unavailable, VeilRayError
from dicom_node.core.failpoint import reach
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from dicom_node.study import CLASSIFY

from . import report
from .answer import Answer
from .engine import Engine
from .models import ModelCard
from .public import PublicPart
from .report.wording import overall

log = logs.get(__name__)


@dataclass(frozen=True)
class Classified:
    """One image's way through the engine."""

    instance_id: int
    image: report.AnalysedImage
    rendering: str
    bundle_id: str
    seconds: dict[str, float]


class Worker:
    """One worker of a site; any number may run, on any number of hosts.

    Parameters
    ----------
    settings : Settings
        The site's settings.
    database, store
        The site's records and instances.
    card : ModelCard
        The verified card of the active model.
    public : PublicPart
        The public part of the model, run in the clear at the hospital.
    engine : Engine
        Evaluates the private part.
    owner : str
        Unique name of this worker.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        card: ModelCard,
        public: PublicPart,
        engine: Engine,
        *,
        owner: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._card = card
        self._public = public
        self._engine = engine
        self._owner = owner
        self._clock = clock

    def run_once(self) -> bool:
        """Take one due job and bring it to an end; false when none is due.

        Every error ends in a state of the job: `Refused` closes it, a retryable error puts it back with a growing
        pause, everything else leaves it to a person. Nothing is swallowed.
        """
        held = jobs.lease(self._database, (CLASSIFY,), self._owner, self._settings.jobs.lease_s, self._clock())
        if held is None:
            return False
        reach("worker-leased")
        try:
            self._classify(held)
        except jobs.LeaseLost as error:
            log.warning("lease-lost", job_id=held.id, **logs.describe(error))
        except VeilRayError as error:
            self._give_back(held, error)
        except Exception as error:
            # A fault of ours must not stop the queue: it is told by class and place, and a person sees the job.
            log.error("classification-fault", job_id=held.id, **logs.describe(error))
            unknown = Unavailable(
                "the classification stopped on an unforeseen fault: see the worker's log", code="fault"
            )
            self._give_back(held, unknown)
        return True

    def _classify(self, held: jobs.Job) -> None:
        started = time.perf_counter()
        classified, refusals = [], {}
        for row in self._instances(held):
            try:
                classified.append(self._image(row))
            except Refused as error:
                refusals[row.id] = error
            jobs.heartbeat(self._database, held, self._settings.jobs.lease_s, self._clock())
        if not classified:
            worst = next(iter(refusals.values()), Refused("the study holds no image any more", code="no-image"))
            with self._database.write() as connection:
                self._note_refusals(connection, held, refusals)
                jobs.refuse(connection, held, worst, self._clock())
            log.info("study-refused", job_id=held.id, study_id=held.study_id, code=worst.code)
            return
        before = time.perf_counter()
        reports = self._write_reports(held, [one.image for one in classified])
        reach("worker-report-stored")
        seconds = {key: sum(one.seconds[key] for one in classified) for key in ("pixels", "trunk", "engine")}
        seconds["report"] = time.perf_counter() - before
        result = self._result(classified, reports, seconds)
        with self._database.write() as connection:
            self._note_refusals(connection, held, refusals)
            self._queue_deliveries(connection, held, reports)
            self._audit(connection, held, "study-classified", result["answer"], classified)
            jobs.finish(connection, held, result, self._clock())
        reach("worker-committed")
        log.info(
            "study-classified",
            job_id=held.id,
            study_id=held.study_id,
            model=self._card.version,
            engine=self._engine.name,
            count=len(classified),
            duration_s=round(time.perf_counter() - started, 4),
        )

    def _instances(self, held: jobs.Job) -> Sequence[sa.Row[Any]]:
        chosen = sa.select(instance).where(instance.c.id.in_(held.payload["instances"])).order_by(instance.c.id)
        with self._database.read() as connection:
            return connection.execute(chosen).all()

    def _image(self, row: sa.Row[Any]) -> Classified:
        clock = [time.perf_counter()]
        dataset = self._store.dataset(row.sha256)
        # The population belongs to the model that answers, which may have changed since the study was assembled.
        selection.judge(dataset, self._settings.selection, self._card.population)
        seen = pixels.from_dataset(dataset)
        clock.append(time.perf_counter())
        features = self._public.features(seen.image)
        clock.append(time.perf_counter())
        inference = self._engine.infer(features)
        clock.append(time.perf_counter())
        reach("worker-inferred")
        answer = Answer.from_logits(inference.logits, self._card)
        region = None
        if answer.answer == "present" and inference.evidence is not None:
            region = report.region_from_evidence(
                self._card.pneumonia_evidence(inference.evidence), seen.rows, seen.columns
            )
        image = report.AnalysedImage(dataset, answer, region or report.frame(seen.rows, seen.columns))
        spans = dict(zip(("pixels", "trunk", "engine"), (b - a for a, b in itertools.pairwise(clock)), strict=True))
        return Classified(row.id, image, seen.rendering, inference.bundle_id, spans)

    def _write_reports(self, held: jobs.Job, images: list[report.AnalysedImage]) -> list[dict[str, str]]:
        """Build the reports and put them into the store; what is returned goes into the job's result."""
        created = datetime.datetime.fromtimestamp(held.created_at).astimezone()  # a report tells the site's own time
        card, privacy = self._card, self._card.privacy
        algorithm = report.Algorithm(
            name=card.name,
            version=card.version,
            weights_sha256=card.weights_sha256,
            engine=self._engine.name,
            operating_point=str(card.operating_point),
            intended_use=card.intended_use,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
        )
        device = report.DeviceObserver(self._settings.site.name)
        seed = f"{held.key}|{card.version}|{card.weights_sha256}"
        first, second = self._predecessors(held)
        number = self._settings.report.series_number
        datasets = [
            report.structured_report(
                images, algorithm, device, created=created, seed=seed, series_number=number, predecessor=first
            )
        ]
        if self._settings.report.text_companion:
            datasets.append(
                report.text_report(
                    images, algorithm, device, created=created, seed=seed, series_number=number + 1, predecessor=second
                )
            )
        return [
            {
                "sop_class_uid": str(dataset.SOPClassUID),
                "sop_instance_uid": str(dataset.SOPInstanceUID),
                "series_instance_uid": str(dataset.SeriesInstanceUID),
                "sha256": self._store.put_report(report.encode(dataset)),
                "title": str(dataset.SeriesDescription),
            }
            for dataset in datasets
        ]

    def _predecessors(self, held: jobs.Job) -> tuple[report.Predecessor | None, report.Predecessor | None]:
        """Find the study's newest reports made before this job: a late image's reports replace them."""
        newest = (
            sa.select(job.c.result)
            .where(job.c.kind == CLASSIFY, job.c.study_id == held.study_id, job.c.state == "done", job.c.id < held.id)
            .order_by(job.c.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            result = connection.execute(newest).scalar_one_or_none()
        earlier = [] if result is None else result["reports"]
        uids = ("sop_class_uid", "sop_instance_uid", "series_instance_uid")
        found = [report.Predecessor(*(written[uid] for uid in uids)) for written in earlier]
        return (found[0] if found else None), (found[1] if len(found) > 1 else None)

    def _result(
        self, classified: list[Classified], reports: list[dict[str, str]], seconds: dict[str, float]
    ) -> dict[str, Any]:
        gravest = overall([one.image for one in classified])
        return {
            "answer": gravest.answer,
            "pneumonia": gravest.pneumonia,
            "bacterial": gravest.bacterial,
            "viral": gravest.viral,
            "model": self._card.version,
            "engine": self._engine.name,
            "weights_sha256": self._card.weights_sha256,
            "images": [one.instance_id for one in classified],
            "renderings": [one.rendering for one in classified],
            "bundles": [one.bundle_id for one in classified if one.bundle_id],
            "reports": reports,
            "seconds": {key: round(value, 4) for key, value in seconds.items()},
        }

    def _queue_deliveries(self, connection: sa.Connection, held: jobs.Job, reports: list[dict[str, str]]) -> None:
        for destination in self._settings.delivery.destinations:
            for written in reports:
                payload = {key: written[key] for key in ("sha256", "sop_class_uid", "sop_instance_uid")}
                payload["destination"] = destination.name
                key = f"deliver:{written['sop_instance_uid']}:{destination.name}"
                jobs.add(connection, "deliver", key, payload, self._clock(), held.study_id)

    def _note_refusals(self, connection: sa.Connection, held: jobs.Job, refusals: dict[int, Refused]) -> None:
        for number, error in refusals.items():
            values = {"refusal_code": error.code, "refusal": str(error)[:400]}
            connection.execute(instance.update().where(instance.c.id == number).values(**values))
        if refusals:
            codes = sorted({error.code for error in refusals.values()})
            detail = {"codes": codes, "images": len(refusals)}
            self._append(connection, "images-refused", held, detail, Outcome.MINOR_FAILURE)

    def _audit(
        self, connection: sa.Connection, held: jobs.Job, what: str, answer: str, classified: list[Classified]
    ) -> None:
        detail = {
            "answer": answer,
            "model": self._card.version,
            "engine": self._engine.name,
            "images": [one.instance_id for one in classified],
            "renderings": [one.rendering for one in classified],
            "bundles": [one.bundle_id for one in classified if one.bundle_id],
        }
        self._append(connection, what, held, detail, Outcome.SUCCESS)

    def _append(
        self, connection: sa.Connection, what: str, held: jobs.Job, detail: dict[str, Any], outcome: Outcome
    ) -> None:
        record = Record(Event.INSTANCES_ACCESSED, what, "E", "secure-infer worker", outcome, held.study_id, detail)
        audit.append(connection, record, self._clock())

    def _give_back(self, held: jobs.Job, error: VeilRayError) -> None:
        now, limits = self._clock(), self._settings.jobs
        detail = {"code": error.code, "attempts": held.attempts}
        with self._database.write() as connection:
            if isinstance(error, Refused):
                jobs.refuse(connection, held, error, now)
                outcome = Outcome.MINOR_FAILURE
            elif isinstance(error, IntegrityError) or held.attempts >= limits.attempts:
                jobs.fail(connection, held, error, now)
                outcome = Outcome.MAJOR_FAILURE
            else:
                jobs.retry(connection, held, error, now + jobs.backoff(held.attempts, 1.0, 300.0))
                outcome = Outcome.SERIOUS_FAILURE
            self._append(connection, "classification-stopped", held, detail, outcome)
        log.warning("classification-stopped", job_id=held.id, attempts=held.attempts, **logs.describe(error))
