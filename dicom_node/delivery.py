"""The outbox: leases `deliver` jobs and sends each report to its destination until the destination holds it.

A job is a row that the worker wrote in the transaction that closed the classification, so no report is forgotten. A
crash between the destination's answer and our commit sends the same bytes under the same SOP Instance UID again,
which every destination takes as a resend.
"""

from __future__ import annotations

import time

from .core import audit, failpoint, jobs, logs
from .core.audit import Event, Outcome, Record
from .core.database import Database
from .core.errors import ConfigError, Refused, Unavailable, VeilRayError
from .core.settings import DestinationSettings, Settings
from .orthanc import OrthancClient
from .scu import Scu
from .storage_status import Receipt
from .store import Store
from .stow import StowClient

log = logs.get(__name__)
KIND = "deliver"
#: Errors that say that no other report would reach the destination either.
AWAY = frozenset({"unreachable", "association-rejected-for-now"})


class Delivery:
    """One delivering worker of a site; any number may run.

    Parameters
    ----------
    settings : Settings
        The site's settings.
    database, store
        The site's records and instances.
    owner : str
        Unique name of this worker.
    """

    def __init__(self, settings: Settings, database: Database, store: Store, *, owner: str) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._owner = owner
        self._destinations = {one.name: one for one in settings.delivery.destinations}
        self._scu = Scu.of(settings.scp)
        self._away: dict[str, tuple[int, float, VeilRayError]] = {}  # failures in a row, until when, the last one
        # No heartbeat: the lease outlives every time-out of a transfer, so a slow peer cannot cause a second sender.
        self.lease_s = max(settings.jobs.lease_s, 2 * self._scu.longest_s)

    def run_once(self, now: float) -> bool:
        """Take one due delivery and bring it to an end; false when none is due.

        Parameters
        ----------
        now : float
            Seconds since the epoch.
        """
        held = jobs.lease(self._database, (KIND,), self._owner, self.lease_s, now)
        if held is None:
            return False
        failpoint.reach("delivery-leased")
        _, until, error = self._away.get(held.payload["destination"], (0, now, None))
        if until > now and error is not None:  # its reports wait together and do not hold up those of others
            self._stopped(held, error, now, run_at=until)
            return True
        started = time.monotonic()
        try:
            receipt = self._send(held)
        except VeilRayError as error:
            self._stopped(held, error, now + time.monotonic() - started)
        except Exception as error:
            # A fault of ours must not stop the queue: it is told by class and place, and tried again with pauses.
            log.error("delivery-fault", job_id=held.id, **logs.describe(error))
            fault = Unavailable("the delivery stopped on an unforeseen fault: see the log", code="fault")
            self._stopped(held, fault, now + time.monotonic() - started)
        else:
            self._delivered(held, receipt, now, time.monotonic() - started)
        return True

    def _send(self, held: jobs.Job) -> Receipt:
        destination = self._destinations.get(held.payload["destination"])
        if destination is None:
            raise Refused(
                f"the settings name no destination '{held.payload['destination']}' any more: put it back under "
                "[[delivery.destinations]] and queue the delivery again",
                code="destination-unknown",
            )
        return self._transfer(destination, self._report(held.payload["sha256"]))

    def _report(self, sha256: str) -> bytes:
        try:
            return self._store.report(sha256)
        except OSError as error:
            raise Unavailable("the report's file cannot be read from the store", code="store-unreadable") from error

    def _transfer(self, destination: DestinationSettings, report: bytes) -> Receipt:
        if destination.kind == "dicom":
            return self._scu.store(destination, report)
        if destination.kind == "stow":
            with StowClient(destination) as stow:
                return stow.store(report)
        assert self._settings.orthanc is not None  # the settings refuse such a destination without [orthanc]
        with OrthancClient(self._settings.orthanc) as orthanc:
            return orthanc.store(report)

    def _delivered(self, held: jobs.Job, receipt: Receipt, now: float, seconds: float) -> None:
        failpoint.reach("delivery-sent")
        name = held.payload["destination"]
        self._away.pop(name, None)
        result = {
            "status": f"0x{receipt.status:04X}",
            "warning": receipt.warning,
            "sop_class_uid": receipt.sop_class_uid,
            "sop_instance_uid": receipt.sop_instance_uid,
            "seconds": round(seconds, 4),
        }
        detail = {key: result[key] for key in ("status", "warning", "sop_class_uid")} | {"destination": name}
        with self._database.write() as connection:
            jobs.finish(connection, held, result, now + seconds)
            record = Record(
                Event.INSTANCES_TRANSFERRED, "report-delivered", "R", "delivery", Outcome.SUCCESS, held.study_id, detail
            )
            audit.append(connection, record, now + seconds)
        failpoint.reach("delivery-finished")
        if receipt.warning:
            log.warning("delivered-with-warning", job_id=held.id, destination=name, status=result["status"])
        else:
            log.info("delivered", job_id=held.id, destination=name, duration_s=result["seconds"])

    def _stopped(self, held: jobs.Job, error: VeilRayError, now: float, run_at: float | None = None) -> None:
        """Put the job back with a growing pause, or leave it to a person when trying again is useless or too late."""
        limits = self._settings.delivery
        name = held.payload["destination"]
        if run_at is None and error.code in AWAY:
            failures = self._away.get(name, (0,))[0] + 1
            run_at = now + jobs.backoff(failures, limits.first_retry_s, limits.longest_retry_s)
            self._away[name] = (failures, run_at, error)
        elif run_at is None:
            run_at = now + jobs.backoff(held.attempts, limits.first_retry_s, limits.longest_retry_s)
        # A fault in the settings, such as a certificate being renewed, passes once the operator has mended it.
        passing = error.retryable or isinstance(error, ConfigError)
        again = passing and now - held.created_at < limits.give_up_after_s
        with self._database.write() as connection:
            if again:
                jobs.retry(connection, held, error, run_at)
            else:
                jobs.fail(connection, held, error, now)
                detail = {"destination": name, "code": error.code, "attempts": held.attempts}
                record = Record(
                    Event.INSTANCES_TRANSFERRED,
                    "report-not-delivered",
                    "R",
                    "delivery",
                    Outcome.SERIOUS_FAILURE,
                    held.study_id,
                    detail,
                )
                audit.append(connection, record, now)
        event = "delivery-postponed" if again else "delivery-failed"
        log.warning(event, job_id=held.id, destination=name, attempts=held.attempts, **logs.describe(error))
