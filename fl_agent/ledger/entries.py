"""The ledger's rows and what they add up to: an append-only, hash-chained table whose head the audit trail notes.

States of a reservation and the events that change them::

    (none) --reserved--> RESERVED --begun--> BEGUN --spent--> SPENT
                             `-----released--> RELEASED

Everything but RELEASED counts: a reservation whose process died counts in full for ever. Every other event is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from dicom_node.core import audit
from dicom_node.core.audit import Event, Outcome, Record
from dicom_node.core.database import audit_event, privacy_ledger
from dicom_node.core.errors import IntegrityError

from .mechanisms import Spending, read

ACTOR: Final = "fl-agent"


class State(StrEnum):
    """Where a reservation stands; the names are those of the events that lead there."""

    RESERVED = "reserved"
    BEGUN = "begun"
    SPENT = "spent"
    RELEASED = "released"


#: From which state an event may come.
BEFORE: Final = {State.BEGUN: State.RESERVED, State.RELEASED: State.RESERVED, State.SPENT: State.BEGUN}


@dataclass(frozen=True)
class Entry:
    """One reservation.

    Attributes
    ----------
    token : str
    patient_set, run, model : str
    terms : Spending
        What was reserved, or once SPENT, what ran.
    state : State
    cut : bool
        Whether less ran than was reserved.
    at : float
        When it was reserved, seconds since the epoch.
    """

    token: str
    patient_set: str
    run: str
    model: str
    terms: Spending
    state: State
    cut: bool
    at: float

    @property
    def counts(self) -> bool:
        """Whether it is a part of the sum."""
        return self.state is not State.RELEASED


def lock(connection: sa.Connection) -> None:
    """Let one transaction at a time use the ledger; SQLite's writers are alone, and its readers see one moment."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(722167)"))


def entries(connection: sa.Connection) -> dict[str, Entry]:
    """Read and check the whole ledger.

    Returns
    -------
    dict of str to Entry
        By token, oldest first.

    Raises
    ------
    IntegrityError
        A row was changed or removed, or the newest is not the one that the audit trail names.
    """
    found: dict[str, Entry] = {}
    expected, previous = 1, audit.GENESIS
    for row in connection.execute(sa.select(privacy_ledger).order_by(privacy_ledger.c.seq)).mappings():
        content = dict(row)
        claimed = content.pop("hash")
        if content["seq"] != expected or content["previous"] != previous or audit.digest(content) != claimed:
            raise _altered(f"at row {content['seq']}")
        expected, previous = expected + 1, claimed
        terms, state, old = read(content["terms"]), State(content["event"]), found.get(content["token"])
        found[content["token"]] = Entry(
            token=content["token"],
            patient_set=content["patient_set"],
            run=content["run"],
            model=content["model"],
            terms=terms,
            state=state,
            cut=old is not None and terms != old.terms,
            at=content["at"] if old is None else old.at,
        )
    noted = connection.execute(_NEWEST_NOTED).scalar()
    if previous != (noted["head"] if noted else audit.GENESIS):
        raise _altered("at its end")
    return found


def append(connection: sa.Connection, entry: Entry, now: float) -> None:
    """Write an entry's newest state, and its audit record, in one transaction; the caller holds `lock`."""
    newest = connection.execute(_NEWEST).one_or_none()
    row: dict[str, Any] = {
        "seq": newest.seq + 1 if newest else 1,
        "at": now,
        "token": entry.token,
        "event": entry.state.value,
        "patient_set": entry.patient_set,
        "run": entry.run,
        "model": entry.model,
        "terms": entry.terms.model_dump(mode="json"),
        "previous": newest.hash if newest else audit.GENESIS,
    }
    row["hash"] = audit.digest(row)
    connection.execute(privacy_ledger.insert(), row)
    detail = {"run": entry.run, "state": entry.state.value, "head": row["hash"]}
    note(connection, NOTED, detail, now)


def note(
    connection: sa.Connection, event_type: str, detail: dict[str, Any], now: float, outcome: Outcome = Outcome.SUCCESS
) -> None:
    """Add a record about the ledger to the audit trail."""
    record = Record(Event.APPLICATION_ACTIVITY, event_type, "E", ACTOR, outcome, detail=detail)
    audit.append(connection, record, now)


def _altered(where: str) -> IntegrityError:
    return IntegrityError(
        f"the privacy ledger was altered {where}: no training until a person has found out why", code="ledger-altered"
    )


NOTED: Final = "privacy-ledger"
_NEWEST: Final = sa.select(privacy_ledger.c.seq, privacy_ledger.c.hash).order_by(privacy_ledger.c.seq.desc()).limit(1)
_NEWEST_NOTED: Final = (
    sa.select(audit_event.c.detail).where(audit_event.c.event_type == NOTED).order_by(audit_event.c.seq.desc()).limit(1)
)
