"""Whom this site may train with right now: one labelled study for each patient who agreed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import sqlalchemy as sa

from dicom_node.core.database import label

from . import consent
from .diagnosis import Diagnosis, combined


@dataclass(frozen=True)
class Eligible:
    """One patient's study.

    Attributes
    ----------
    patient_key : str
        Pseudonym of the patient; no two rows share it, so that a row's privacy is the patient's.
    """

    patient_key: str
    study_id: int
    label: Diagnosis


def patients(connection: sa.Connection, now: float) -> list[Eligible]:
    """Return one study per patient, by pseudonym: of those that `consent.eligible` allows, the newest with a label.

    Studies whose sources contradict each other have no label.
    """
    said: dict[int, set[Diagnosis]] = defaultdict(set)
    for row in connection.execute(sa.select(label.c.study_id, label.c.value)):
        said[row.study_id].add(Diagnosis(row.value))
    newest: dict[str, Eligible] = {}
    for one in sorted(consent.eligible(connection, now), key=lambda one: (one.last_received_at, one.study_id)):
        shown = combined(said[one.study_id])
        if shown is not None:
            newest[one.patient_key] = Eligible(one.patient_key, one.study_id, shown)
    return sorted(newest.values(), key=lambda one: one.patient_key)
