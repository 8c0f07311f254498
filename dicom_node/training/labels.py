"""What studies show: from lists and worklists, from reports that a physician verified, and from the reading page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node import part10
from dicom_node.core import audit
from dicom_node.core.audit import Event, Record
from dicom_node.core.database import label, study, subject

from . import lists
from .diagnosis import Diagnosis
from .lists import Fault, FaultyList
from .subjects import Pseudonyms

#: Columns of a list of labels; each line names one study in exactly one way.
COLUMNS = ("StudyInstanceUID", "AccessionNumber", "Label")
LIST, VERIFIED_REPORT, READING = "list", "verified-report", "reading"


@dataclass(frozen=True)
class Line:
    """One labelled study of a list, not yet looked up.

    Attributes
    ----------
    study_instance_uid : str
        Empty where `accession_key` names the study.
    accession_key : str
        Pseudonym of the accession number.
    """

    line: int
    study_instance_uid: str
    accession_key: str
    value: Diagnosis


@dataclass(frozen=True)
class Outcome:
    """How many studies got a first label, another one, or kept theirs; lines of unknown studies were left out."""

    added: int
    changed: int
    unchanged: int
    unknown: tuple[int, ...]


def read_list(path: Path, names: Pseudonyms) -> list[Line]:
    """Read a list of labels (`COLUMNS`); Label is one of `Diagnosis`, in upper or lower case.

    Raises
    ------
    FaultyList
        With every fault; the list is taken whole or not at all.
    """
    found: list[Line] = []
    faults: list[Fault] = []
    for row in lists.read(path, COLUMNS, ("Label",)):
        uid, accession, value = (row.values.get(column, "") for column in COLUMNS)
        if bool(uid) == bool(accession):
            faults.append(Fault(row.line, "it must name exactly one of StudyInstanceUID and AccessionNumber"))
        elif uid and not part10.is_uid(uid):
            faults.append(Fault(row.line, "its StudyInstanceUID is not a UID"))
        elif value.lower() not in set(Diagnosis):
            faults.append(Fault(row.line, f"Label must be one of {', '.join(Diagnosis)}"))
        else:
            key = names.accession(accession).key if accession else ""
            found.append(Line(row.line, uid, key, Diagnosis(value.lower())))
    if faults:
        raise FaultyList(faults)
    return found


def record_list(
    connection: sa.Connection,
    lines: Iterable[Line],
    actor: str,
    now: float,
    *,
    skip_unknown: bool = False,
    replace: bool = False,
) -> Outcome:
    """Record a list's labels in the caller's writing transaction, each change with its audit event.

    Parameters
    ----------
    skip_unknown : bool
        Leave out the lines of studies that were not received, as a worklist holds them.
    replace : bool
        Let this list change labels of earlier lists.

    Raises
    ------
    FaultyList
        A study is unknown, named twice, or labelled otherwise already; nothing may be committed then.
    """
    faults: list[Fault] = []
    unknown: list[int] = []
    added = changed = unchanged = 0
    seen: dict[int, Line] = {}
    for line in lines:
        studies = _studies(connection, line)
        if not studies:
            unknown.append(line.line)
            if not skip_unknown:
                faults.append(Fault(line.line, "no such study was received; --skip-unknown leaves it out"))
            continue
        if len(studies) > 1:
            faults.append(Fault(line.line, "several studies have this accession number: name the StudyInstanceUID"))
            continue
        (number,) = studies
        first = seen.setdefault(number, line)
        if first is not line:
            what = "the same label to" if first.value is line.value else "another label to"
            faults.append(Fault(line.line, f"line {first.line} gives {what} the same study"))
            continue
        before = _before(connection, number, LIST)
        if before is not None and before != line.value and not replace:
            faults.append(Fault(line.line, "an earlier list gives this study another label; --replace changes it"))
            continue
        if put(connection, number, LIST, line.value, actor, now):
            added += before is None
            changed += before is not None
        else:
            unchanged += 1
    if faults:
        raise FaultyList(faults)
    return Outcome(added, changed, unchanged, tuple(unknown))


def put(connection: sa.Connection, study_id: int, source: str, value: Diagnosis, actor: str, now: float) -> bool:
    """Record what one source says about a study, with its audit event; return whether that is new."""
    before = _before(connection, study_id, source)
    if before == value:
        return False
    if before is None:
        row = {"study_id": study_id, "source": source, "value": str(value), "recorded_at": now}
        connection.execute(label.insert().values(row))
    else:
        mine = label.update().where(label.c.study_id == study_id, label.c.source == source)
        connection.execute(mine.values(value=str(value), recorded_at=now))
    _note(connection, "label-recorded", "C" if before is None else "U", actor, study_id, source, now)
    return True


def drop(connection: sa.Connection, study_id: int, source: str, actor: str, now: float) -> bool:
    """Take back what one source said about a study; return whether it had said anything."""
    gone = connection.execute(label.delete().where(label.c.study_id == study_id, label.c.source == source))
    if gone.rowcount:
        _note(connection, "label-removed", "D", actor, study_id, source, now)
    return bool(gone.rowcount)


def counts(connection: sa.Connection) -> dict[tuple[str, str], int]:
    """Return how many studies have which label, by source and label."""
    number = sa.func.count().label("number")
    rows = connection.execute(sa.select(label.c.source, label.c.value, number).group_by(label.c.source, label.c.value))
    return {(row.source, row.value): row.number for row in rows}


def _studies(connection: sa.Connection, line: Line) -> list[int]:
    if line.study_instance_uid:
        chosen: sa.Select[Any] = sa.select(study.c.id).where(study.c.study_instance_uid == line.study_instance_uid)
    else:
        chosen = sa.select(subject.c.study_id).where(subject.c.accession_key == line.accession_key)
    return list(connection.execute(chosen).scalars())


def _before(connection: sa.Connection, study_id: int, source: str) -> str | None:
    mine = sa.select(label.c.value).where(label.c.study_id == study_id, label.c.source == source)
    return connection.execute(mine).scalar_one_or_none()


def _note(
    connection: sa.Connection, what: str, action: str, actor: str, study_id: int, source: str, now: float
) -> None:
    # The label itself is a diagnosis: the trail tells that and whence it changed, not what it says.
    event = Record(Event.APPLICATION_ACTIVITY, what, action, actor, study_id=study_id, detail={"source": source})
    audit.append(connection, event, now)
