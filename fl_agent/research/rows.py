"""The patients of a research site's folder as rows of a federated run, beside those of the studies received.

A patient who opted out at this site is left out, whatever the folder holds, and so is one who has a row already: a
patient counts once where the list calls patients by the Patient IDs of their studies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_node import pixels, selection
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError, IntegrityError
from dicom_node.core.settings import Population, SelectionSettings
from dicom_node.training import consent, subjects
from dicom_node.training.lists import Fault, FaultyList, told
from dicom_node.training.subjects import Pseudonyms

from ..features import FeatureCache, Image
from ..site_rows import Rows
from .about import read_about
from .folder import PATIENTS, Film, digest, read_list
from .pictures import grey

#: Why a patient of the folder has no row, beside "age" and "view".
OPTED_OUT: Final = "opted-out"
RECEIVED: Final = "received"


class FolderRows:
    """Reads the rows of a folder, anew each time: whoever is taken out of it is in no later contribution.

    Parameters
    ----------
    folder : Path
        See the package's docstring. Where the list has a column split, its test patients never train.
    database : Database
        The site's records, which know who opted out.
    names : Pseudonyms
    rules : SelectionSettings
        The site's rules of selection.
    """

    def __init__(self, folder: Path, database: Database, names: Pseudonyms, rules: SelectionSettings) -> None:
        self._folder, self._database, self._names, self._rules = folder, database, names, rules

    def check(self, done: Callable[[int, int], None]) -> int:
        """Read all of the folder, every picture too, and return how many patients may train.

        Parameters
        ----------
        done : callable
            Called with (pictures done, of all).

        Raises
        ------
        ConfigError
            The folder is not as the package's docstring says, lines of the list have faults, name what is no picture,
            or the same picture for two patients (``training-data``), or nibabel is needed (``not-installed``).
        """
        read_about(self._folder)
        films = self._training()
        faults: list[Fault] = []
        first: dict[str, Film] = {}
        for number, film in enumerate(films, start=1):
            path = self._folder / film.file
            try:
                grey(path)
            except IntegrityError as error:
                faults.append(Fault(film.line, str(error)))
            if (same := first.setdefault(digest(path), film)).patient != film.patient:
                faults.append(Fault(film.line, f"line {same.line} names the same picture for another patient"))
            done(number, len(films))
        if faults:
            raise self._bad(told(faults))
        return len({film.patient for film in films})

    def read(
        self,
        population: Population | None,
        cache: FeatureCache,
        others: Collection[str],
        done: Callable[[int, int], None],
    ) -> Rows:
        """Return the rows of the folder's patients.

        Parameters
        ----------
        population : Population or None
            Whom the model is made for. A film without an age or a view has those of the whole folder, as
            `dataset.toml` states them.
        cache : FeatureCache
            Used for this folder alone.
        others : collection of str
            Pseudonyms of patients who have a row already.
        done : callable
            Called with (films done, of all).

        Raises
        ------
        ConfigError, IntegrityError
            The folder is no longer what `check` found good. That is no refusal of a plan: it may pass.
        """
        about, films = read_about(self._folder), self._training()
        with self._database.read() as connection:
            opted_out, received = consent.opted_out(connection), subjects.patient_ids(connection)
        with_row = {received[one] for one in others}
        patients: list[str] = []
        labels: list[int] = []
        features: list[NDArray[np.float32]] = []
        used: set[str] = set()
        unfit: dict[str, str] = {}
        for number, film in enumerate(films, start=1):
            who = self._names.patient(film.patient, "")
            if who.patient_id_key in opted_out:
                unfit[who.key] = OPTED_OUT
            elif who.patient_id_key in with_row:
                unfit[who.key] = RECEIVED
            elif (reason := self._unfit(film, about.population, population)) is not None:
                unfit[who.key] = reason
            else:
                patients.append(who.key)
                labels.append(film.label)
                path = self._folder / film.file
                found = digest(path)
                used.add(found)
                features.append(cache.features(found, partial(_image, path, found)))
            done(number, len(films))
        cache.erase_all_but(used)
        left_out = Counter(unfit[one] for one in unfit.keys() - set(patients))
        stacked = np.array(features, dtype=np.float32).reshape(-1, *cache.shape)
        return Rows(tuple(patients), np.array(labels, dtype=np.int64), stacked, dict(left_out))

    def _training(self) -> list[Film]:
        try:
            films = [film for film in read_list(self._folder) if film.split != "test"]
        except FaultyList as error:
            raise self._bad(told(error.faults)) from error
        if not films:
            raise self._bad("it leaves nobody for training")
        return films

    def _bad(self, what: str) -> ConfigError:
        return ConfigError(f"films cannot be used, because of {self._folder / PATIENTS}: {what}", code="training-data")

    def _unfit(self, film: Film, whole: Population, population: Population | None) -> str | None:
        """Say by a code why a film may not be used; see `selection.judge`."""
        views = {film.view} if film.view else set(whole.views)
        if not views <= selection.views_taken(self._rules, population):
            return "view"
        if population is None or self._rules.age_rule == "off":
            return None
        if film.age is not None:
            return None if selection.is_of_age(film.age, population) else "age"
        younger, older = whole.min_age_years < population.min_age_years, whole.max_age_years > population.max_age_years
        return "age" if younger or older else None


def _image(path: Path, expected: str) -> Image:
    if digest(path) != expected:
        raise IntegrityError("a film changed while it was read: the next contribution takes it", code="training-image")
    return pixels.from_picture(grey(path))
