"""Who agreed to training and who did not (GDPR Articles 7 and 9): silence means no, and an opt-out always wins.

A study may be used when at least one decision in force covers it (its patient, itself, or its accession number) and
no opt-out does. Erring means leaving out: an opt-out counts for its Patient ID under every issuer, an agreement under
its own alone.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.core import audit
from dicom_node.core.audit import Event, Record
from dicom_node.core.database import consent, study, subject

from . import lists
from .lists import Fault, FaultyList, Row
from .subjects import Pseudonyms, Subject

#: Columns of a list of decisions; each line names one patient or study in exactly one way.
COLUMNS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber", "Consent", "Until")
_CHOICES = {"yes": "given", "no": "withdrawn"}


class Decision(StrEnum):
    """What was decided."""

    GIVEN = "given"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Change:
    """One decision to record.

    Attributes
    ----------
    expires_at : float or None
        Until when an agreement holds, seconds since the epoch; None for good. Opt-outs never expire.
    line : int
        Where it stands in its list; 0 for none.
    """

    subject: Subject
    decision: Decision
    expires_at: float | None = None
    line: int = 0


@dataclass(frozen=True)
class Outcome:
    """What an import changes.

    Attributes
    ----------
    given, withdrawn, unchanged : int
        Decisions.
    unmatched : tuple of int
        Lines that cover no study received so far: kept for later, or a sign of a wrong identifier.
    """

    given: int
    withdrawn: int
    unchanged: int
    unmatched: tuple[int, ...]


@dataclass(frozen=True)
class Agreed:
    """A study that may be used.

    Attributes
    ----------
    patient_key : str
        Pseudonym of its patient.
    last_received_at : float
        Seconds since the epoch.
    """

    study_id: int
    patient_key: str
    last_received_at: float


def read_list(path: Path, names: Pseudonyms) -> list[Change]:
    """Read a list of decisions (`COLUMNS`): Consent is yes or no, Until a date (2027-12-31), its whole day included.

    Raises
    ------
    FaultyList
        With every fault; the list is taken whole or not at all.
    """
    rows = lists.read(path, COLUMNS, ("Consent",))
    faults: list[Fault] = []
    changes: list[Change] = []
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        try:
            change = _parse(row, names)
        except ValueError as error:
            faults.append(Fault(row.line, str(error)))
            continue
        earlier = seen.setdefault((change.subject.kind, change.subject.key), row.line)
        if earlier != row.line:
            faults.append(Fault(row.line, f"line {earlier} decides about the same {change.subject.kind} already"))
        changes.append(change)
    if faults:
        raise FaultyList(faults)
    return changes


def _parse(row: Row, names: Pseudonyms) -> Change:
    """Parse one line; a ValueError's text is written by us and holds no value."""
    patient, issuer, uid, accession, choice, until = (row.values.get(column, "") for column in COLUMNS)
    if sum(map(bool, (patient, uid, accession))) != 1:
        raise ValueError("it must name exactly one of PatientID, StudyInstanceUID and AccessionNumber")
    if issuer and not patient:
        raise ValueError("IssuerOfPatientID belongs to a PatientID")
    if choice.lower() not in _CHOICES:
        raise ValueError("Consent must be yes or no")
    decision = Decision(_CHOICES[choice.lower()])
    if until and decision is Decision.WITHDRAWN:
        raise ValueError("an opt-out has no end: leave Until empty")
    who = names.patient(patient, issuer) if patient else names.study(uid) if uid else names.accession(accession)
    return Change(who, decision, end_of_day(until) if until else None, row.line)


def end_of_day(text: str) -> float:
    """Return the end of a day, given as 2027-12-31, in the site's own time zone, seconds since the epoch."""
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError("Until must be a date such as 2027-12-31") from None
    return datetime.datetime.combine(day + datetime.timedelta(days=1), datetime.time()).timestamp()


def record(
    connection: sa.Connection, changes: Iterable[Change], actor: str, now: float, *, allow_reversal: bool = False
) -> Outcome:
    """Record decisions, each change with its audit event, in the caller's transaction.

    Parameters
    ----------
    connection : sqlalchemy.Connection
        A writing transaction.
    changes : iterable of Change
    actor : str
        Who decided or imported; no patient data.
    now : float
        Seconds since the epoch.
    allow_reversal : bool
        Whether an opt-out may become an agreement. An old list must never do that by accident.

    Raises
    ------
    FaultyList
        An opt-out would be reversed; nothing may be committed then.
    """
    given = withdrawn = unchanged = 0
    unmatched: list[int] = []
    faults: list[Fault] = []
    for change in changes:
        who = change.subject
        earlier = connection.execute(
            sa.select(consent).where(consent.c.kind == who.kind, consent.c.key == who.key)
        ).one_or_none()
        if not connection.execute(sa.select(sa.exists(_covered(change)))).scalar_one():
            unmatched.append(change.line)
        if earlier is not None and (earlier.decision, earlier.expires_at) == (change.decision, change.expires_at):
            unchanged += 1
            continue
        reversal = earlier is not None and earlier.decision == Decision.WITHDRAWN
        if reversal and not allow_reversal:
            faults.append(Fault(change.line, f"this {who.kind} opted out: only 'dicom-node consent set' reverses that"))
            continue
        _write(connection, change, earlier, actor, now)
        given += change.decision is Decision.GIVEN
        withdrawn += change.decision is Decision.WITHDRAWN
    if faults:
        raise FaultyList(faults)
    return Outcome(given, withdrawn, unchanged, tuple(unmatched))


def _covered(change: Change) -> sa.Select[Any]:
    column = {"patient": subject.c.patient_key, "study": subject.c.study_key, "accession": subject.c.accession_key}
    chosen = sa.select(subject.c.study_id)
    if change.decision is Decision.WITHDRAWN and change.subject.patient_id_key is not None:
        return chosen.where(subject.c.patient_id_key == change.subject.patient_id_key)
    return chosen.where(column[change.subject.kind] == change.subject.key)


def _write(connection: sa.Connection, change: Change, earlier: sa.Row[Any] | None, actor: str, now: float) -> None:
    values = {
        "kind": change.subject.kind,
        "key": change.subject.key,
        "patient_id_key": change.subject.patient_id_key,
        "decision": str(change.decision),
        "expires_at": change.expires_at,
        "recorded_at": now,
    }
    if earlier is None:
        number = connection.execute(consent.insert().values(values).returning(consent.c.id)).scalar_one()
    else:
        number = earlier.id
        connection.execute(consent.update().where(consent.c.id == number).values(values))
    detail = {"consent_id": number, "kind": change.subject.kind, "expires_at": change.expires_at}
    if earlier is not None:
        detail["before"] = earlier.decision
    action = "C" if earlier is None else "U"
    event = Record(Event.APPLICATION_ACTIVITY, f"consent-{change.decision}", action, actor, detail=detail)
    audit.append(connection, event, now)


def find(connection: sa.Connection, who: Subject) -> sa.Row[Any] | None:
    """Return the decision recorded about exactly this subject, if any."""
    return connection.execute(
        sa.select(consent).where(consent.c.kind == who.kind, consent.c.key == who.key)
    ).one_or_none()


def opted_out(connection: sa.Connection) -> frozenset[str]:
    """Return the pseudonyms of the Patient IDs, whatever their issuer, of all patients who opted out."""
    said = sa.select(consent.c.patient_id_key).where(consent.c.decision == Decision.WITHDRAWN)
    return frozenset(connection.execute(said.where(consent.c.kind == "patient")).scalars())


def eligible(connection: sa.Connection, now: float) -> list[Agreed]:
    """Return the studies whose patients agree at `now`; ask anew before each round, since any moment may change it.

    Parameters
    ----------
    connection : sqlalchemy.Connection
    now : float
        Seconds since the epoch.

    Returns
    -------
    list of Agreed
        By study. Studies that changed since `subjects.refresh`, and those that name no patient, are left out.
    """
    patient = sa.and_(consent.c.kind == "patient", consent.c.key == subject.c.patient_key)
    anyone = sa.and_(consent.c.kind == "patient", consent.c.patient_id_key == subject.c.patient_id_key)
    one = sa.and_(consent.c.kind == "study", consent.c.key == subject.c.study_key)
    ordered = sa.and_(consent.c.kind == "accession", consent.c.key == subject.c.accession_key)
    in_force = sa.or_(consent.c.expires_at.is_(None), consent.c.expires_at > now)
    agreed = sa.exists().where(consent.c.decision == Decision.GIVEN, in_force, sa.or_(patient, one, ordered))
    opted_out = sa.exists().where(consent.c.decision == Decision.WITHDRAWN, sa.or_(anyone, one, ordered))
    chosen = (
        sa.select(subject.c.study_id, subject.c.patient_key, study.c.last_received_at)
        .join(study, sa.and_(study.c.id == subject.c.study_id, study.c.revision == subject.c.revision))
        .where(subject.c.patient_key.is_not(None), agreed, ~opted_out)
    )
    return [Agreed(*row) for row in connection.execute(chosen.order_by(subject.c.study_id))]
