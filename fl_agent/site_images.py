"""The images that a hospital may train and evaluate with: of patients who agree at this moment, and fit for both.

Images pass the rules of selection and de-identification before anything is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dicom_node import pixels, selection
from dicom_node import study as studies
from dicom_node.core.database import Database
from dicom_node.core.errors import IntegrityError, Refused
from dicom_node.core.settings import Population, SelectionSettings
from dicom_node.store import Store
from dicom_node.training import eligible
from dicom_node.training.deidentify import deidentify
from dicom_node.training.diagnosis import Diagnosis
from dicom_node.training.site_key import SiteKey

T = TypeVar("T")


@dataclass(frozen=True)
class AgreedStudy:
    """The one study of a patient who agreed; stays at the site.

    Attributes
    ----------
    patient : str
        Pseudonym.
    study_id : int
        Database number.
    label : Diagnosis
    digests : tuple of str
        Content hashes of its images, in order of arrival.
    """

    patient: str
    study_id: int
    label: Diagnosis
    digests: tuple[str, ...]


class SiteImages:
    """Reads the images of one site.

    Parameters
    ----------
    database, store
        The site's records and instances; `training.subjects.refresh` was run.
    key : SiteKey
    rules : SelectionSettings
        The site's rules of selection.
    population : Population or None
        Whom the model is made for.
    """

    def __init__(
        self, database: Database, store: Store, key: SiteKey, rules: SelectionSettings, population: Population | None
    ) -> None:
        self._database = database
        self._store = store
        self._key = key
        self._rules = rules
        self._population = population

    @property
    def rules(self) -> str:
        """What decides which images are fit, as one text."""
        return f"{self._rules.model_dump_json()} {self._population and self._population.model_dump_json()}"

    def agreed(self, now: float) -> list[AgreedStudy]:
        """Return one study of each patient who agrees at `now` (seconds since the epoch), by pseudonym."""
        with self._database.read() as connection:
            return [
                AgreedStudy(
                    one.patient_key,
                    one.study_id,
                    one.label,
                    tuple(row.sha256 for row in studies.current_instances(connection, one.study_id)),
                )
                for one in eligible.patients(connection, now)
            ]

    def image(self, digest: str) -> NDArray[np.float32]:
        """Read one image, shape (224, 224), 0..1.

        Raises
        ------
        Refused, IntegrityError
            It is not fit, or not what it was.
        """
        dataset = self._store.dataset(digest)
        selection.judge(dataset, self._rules, self._population)
        return pixels.from_dataset(deidentify(dataset, self._key)).image


def usable(digests: Sequence[str], read: Callable[[str], T]) -> tuple[list[T], str]:
    """Read what can be read of a study's images, and say by a code why the last of the others cannot."""
    found, reason = [], "no-image"
    for digest in digests:
        try:
            found.append(read(digest))
        except (Refused, IntegrityError) as error:
            reason = error.code
    return found, reason
