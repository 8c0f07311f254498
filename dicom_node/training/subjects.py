"""Whom each study is about: Patient ID with issuer, accession number and study, as keyed hashes (PS3.3 C.7.1.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from pydicom import Dataset

from dicom_node import malformed
from dicom_node import study as studies
from dicom_node.core.database import Database, study, subject
from dicom_node.core.errors import IntegrityError, Refused
from dicom_node.store import Store

from .site_key import SiteKey

Kind = Literal["patient", "study", "accession"]


@dataclass(frozen=True)
class Subject:
    """One patient or study, named by pseudonyms alone.

    Attributes
    ----------
    kind : str
        What `key` stands for.
    key : str
        Pseudonym; of a patient, it covers Patient ID and issuer.
    patient_id_key : str or None
        Of a patient, the pseudonym of the Patient ID without its issuer.
    """

    kind: Kind
    key: str
    patient_id_key: str | None = None


class Pseudonyms:
    """Turns identifiers, as images and lists carry them, into subjects.

    Parameters
    ----------
    key : SiteKey
    issuer : str
        Issuer of Patient ID that is meant where none is named.
    """

    def __init__(self, key: SiteKey, issuer: str) -> None:
        self._key = key
        self._issuer = issuer.strip()

    def patient(self, patient_id: str, issuer: str) -> Subject:
        """Return the patient of a Patient ID, which must not be blank."""
        identifier, by = patient_id.strip(), issuer.strip() or self._issuer
        narrow, wide = self._key.pseudonym("patient", identifier, by), self._key.pseudonym("patient-id", identifier)
        return Subject("patient", narrow, wide)

    def study(self, study_instance_uid: str) -> Subject:
        """Return the study of a Study Instance UID."""
        return Subject("study", self._key.pseudonym("study", study_instance_uid.strip()))

    def accession(self, number: str) -> Subject:
        """Return the studies of an accession number, which must not be blank."""
        return Subject("accession", self._key.pseudonym("accession", number.strip()))

    def of(self, images: list[Dataset]) -> tuple[Subject | None, Subject | None]:
        """Return patient and accession number of a study's images; None where absent.

        Images that disagree on either belong to nobody: an opt-out by the number that was passed over would be missed.
        """
        identities = {(_text(one, "PatientID"), _text(one, "IssuerOfPatientID") or self._issuer) for one in images}
        numbers = {_text(one, "AccessionNumber") for one in images}
        if len(identities) != 1 or len(numbers) != 1:
            return None, None
        (identity,), (number,) = identities, numbers
        return self.patient(*identity) if identity[0] else None, self.accession(number) if number else None


def patient_ids(connection: sa.Connection) -> dict[str, str]:
    """Map each received patient's pseudonym to that of the Patient ID without its issuer."""
    known = sa.select(subject.c.patient_key, subject.c.patient_id_key).where(subject.c.patient_key.is_not(None))
    return {row.patient_key: row.patient_id_key for row in connection.execute(known.distinct())}


def refresh(database: Database, store: Store, names: Pseudonyms, done: Callable[[int, int], None]) -> int:
    """Bring the table `subject` up to date with the studies received; return how many studies were looked at.

    A study whose images cannot be read, or name no patient or two, belongs to nobody and is never trained on.

    Parameters
    ----------
    database, store
        The site's records and instances.
    names : Pseudonyms
    done : callable
        Called with (studies done, of all).
    """
    outdated = sa.select(study.c.id, study.c.revision, study.c.study_instance_uid).select_from(
        study.outerjoin(subject, subject.c.study_id == study.c.id)
    )
    with database.read() as connection:
        rows = connection.execute(
            outdated.where(sa.or_(subject.c.revision.is_(None), subject.c.revision != study.c.revision))
        ).all()
    for number, row in enumerate(rows, start=1):
        _look(database, store, names, row.id, row.revision, row.study_instance_uid)
        done(number, len(rows))
    return len(rows)


def _look(database: Database, store: Store, names: Pseudonyms, study_id: int, revision: int, uid: str) -> None:
    with database.read() as connection:
        current = studies.current_instances(connection, study_id)
    try:
        with malformed.refused("the image's header"):
            patient, accession = names.of([store.dataset(one.sha256) for one in current])
    except (Refused, IntegrityError):  # recorded by the assembler with its reason; here it only belongs to nobody
        patient = accession = None
    values = {
        "study_id": study_id,
        "revision": revision,
        "study_key": names.study(uid).key,
        "patient_key": patient and patient.key,
        "patient_id_key": patient and patient.patient_id_key,
        "accession_key": accession and accession.key,
    }
    with database.write() as connection:
        connection.execute(subject.delete().where(subject.c.study_id == study_id))
        connection.execute(subject.insert().values(values))


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
