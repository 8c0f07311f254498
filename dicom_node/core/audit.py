"""The append-only, hash-chained audit trail, with the event codes of DICOM PS3.15 Annex A.5.

Rows name a study by its database number, not by UID or patient: the trail can be shown to an auditor, and a patient's
records can be erased, without breaking the chain. Cutting off the newest rows is visible only against a head noted
elsewhere, which is why every service logs the head when it starts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import sqlalchemy as sa

from .database import audit_event
from .errors import IntegrityError

GENESIS = "0" * 64
# Built once: composing a statement costs more than running it, and every received instance is audited.
_INSERT = audit_event.insert()
_NEWEST = sa.select(audit_event.c.seq, audit_event.c.hash).order_by(audit_event.c.seq.desc()).limit(1)


class Event(Enum):
    """Audit event identifiers (PS3.15 A.5.3; PS3.16 CID 400)."""

    APPLICATION_ACTIVITY = ("110100", "Application Activity")
    BEGIN_TRANSFERRING = ("110102", "Begin Transferring DICOM Instances")
    INSTANCES_ACCESSED = ("110103", "DICOM Instances Accessed")
    INSTANCES_TRANSFERRED = ("110104", "DICOM Instances Transferred")
    EXPORT = ("110106", "Export")
    NETWORK_ENTRY = ("110108", "Network Entry")
    QUERY = ("110112", "Query")
    SECURITY_ALERT = ("110113", "Security Alert")

    @property
    def code(self) -> str:
        """The code value in the coding scheme DCM."""
        return self.value[0]


class Outcome(IntEnum):
    """EventOutcomeIndicator (RFC 3881)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


@dataclass(frozen=True)
class Record:
    """One thing that happened.

    Attributes
    ----------
    event : Event
        What kind of event.
    event_type : str
        Which of its kind, in kebab case, e.g. ``instance-received``.
    action : str
        EventActionCode: C(reate), R(ead), U(pdate), D(elete) or E(xecute).
    actor : str
        The process or peer that acted.
    study_id : int, optional
        Database number of the study acted on.
    detail : dict
        JSON values without patient data.
    """

    event: Event
    event_type: str
    action: str
    actor: str
    outcome: Outcome = Outcome.SUCCESS
    study_id: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def append(connection: sa.Connection, record: Record, now: float) -> None:
    """Add a record to the trail, inside the transaction of the act that it records.

    Parameters
    ----------
    connection : sqlalchemy.Connection
        A writing transaction: the act and its record are committed together or not at all.
    now : float
        Seconds since the epoch.
    """
    if connection.dialect.name == "postgresql":  # one writer at a time, or two rows could follow the same one
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(722166)"))
    seq, previous = _last(connection)
    row: dict[str, Any] = {
        "seq": seq + 1,
        "at": now,
        "event_id": record.event.code,
        "event_type": record.event_type,
        "action": record.action,
        "outcome": int(record.outcome),
        "actor": record.actor,
        "study_id": record.study_id,
        "detail": record.detail,
        "previous": previous,
    }
    connection.execute(_INSERT, {**row, "hash": digest(row)})


def verify(connection: sa.Connection) -> tuple[int, str]:
    """Check the whole chain.

    Returns
    -------
    tuple of int and str
        Number and hash of the newest row: compare them with the head noted elsewhere.

    Raises
    ------
    IntegrityError
        A row was changed, removed or inserted.
    """
    expected, previous = 1, GENESIS
    for found in connection.execute(sa.select(audit_event).order_by(audit_event.c.seq)).mappings():
        row = dict(found)
        claimed = row.pop("hash")
        if row["seq"] != expected or row["previous"] != previous or digest(row) != claimed:
            raise IntegrityError(f"the audit trail was altered at row {row['seq']}: restore it from a backup")
        expected, previous = expected + 1, claimed
    return expected - 1, previous


def head(connection: sa.Connection) -> tuple[int, str]:
    """Return number and hash of the newest row, without checking the chain."""
    return _last(connection)


def _last(connection: sa.Connection) -> tuple[int, str]:
    row = connection.execute(_NEWEST).one_or_none()
    return (row.seq, row.hash) if row is not None else (0, GENESIS)


def digest(row: dict[str, Any]) -> str:
    """Hash a row of an append-only table: SHA-256 of its sorted JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
