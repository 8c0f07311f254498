"""Collects labels from the verified reports that the site's Orthanc holds about the studies received."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pydicom
import sqlalchemy as sa

from dicom_node import malformed
from dicom_node.core.database import Database, study
from dicom_node.core.errors import Refused
from dicom_node.orthanc import OrthancClient

from . import labels, verified_report
from .diagnosis import Diagnosis

UNVERIFIED = "unverified"


@dataclass(frozen=True)
class Found:
    """What the reports of all studies say.

    Attributes
    ----------
    said : dict of int to Diagnosis or None
        By database number of the study; None where the newest verified report says nothing usable.
    refused : int
        Verified reports that contradict themselves or cannot be read.
    unverified : int
        Reports that nobody verified yet.
    """

    said: dict[int, Diagnosis | None]
    refused: int
    unverified: int


def find(database: Database, client: OrthancClient, done: Callable[[int, int], None]) -> Found:
    """Read the reports of every study received; of several verified ones the one verified last counts.

    Parameters
    ----------
    done : callable
        Called with (studies done, of all).

    Raises
    ------
    Unavailable
        Orthanc is away.
    """
    with database.read() as connection:
        rows = connection.execute(sa.select(study.c.id, study.c.study_instance_uid).order_by(study.c.id)).all()
    said: dict[int, Diagnosis | None] = {}
    codes: list[str] = []
    for number, row in enumerate(rows, start=1):
        newest = ""
        for identifier in client.reports(row.study_instance_uid):
            content = client.file(identifier)
            if content is None:
                continue  # deleted since it was listed
            try:
                at, value = _read(content)
            except Refused as error:
                codes.append(error.code)
                continue
            if at >= newest:
                newest, said[row.id] = at, value
        done(number, len(rows))
    return Found(said, sum(code != UNVERIFIED for code in codes), codes.count(UNVERIFIED))


def record(connection: sa.Connection, found: Found, actor: str, now: float) -> tuple[int, int]:
    """Record what was found, in the caller's writing transaction; return how many labels are new and how many gone."""
    new = gone = 0
    for study_id, value in found.said.items():
        if value is None:
            gone += labels.drop(connection, study_id, labels.VERIFIED_REPORT, actor, now)
        else:
            new += labels.put(connection, study_id, labels.VERIFIED_REPORT, value, actor, now)
    return new, gone


def _read(content: bytes) -> tuple[str, Diagnosis | None]:
    """Return when a report was verified (a DICOM date and time, which sorts as text) and what it states."""
    with malformed.refused("the report"):
        report = pydicom.dcmread(io.BytesIO(content))
    value = verified_report.diagnosis(report)
    return max(str(one.get("VerificationDateTime", "")) for one in report.VerifyingObserverSequence), value
