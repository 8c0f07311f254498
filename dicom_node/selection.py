"""Which images may be classified: human, frontal, chest, of the intended age (PS3.3 C.7.1.1, C.8.11.2, C.8.11.5).

Every refusal is one sentence for the person who runs the site: the tag that decided and the setting that could change
it, never a value of this patient. Codes are echoed only where the standard defines them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import date

from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from . import malformed, vocabulary
from .core.errors import Refused
from .core.settings import Population, SelectionSettings

# What describes this one image; the study's texts may speak of its other images too.
IMAGE_TEXTS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
IMAGE_CODES = ("PerformedProtocolCodeSequence", "SeriesDescriptionCodeSequence")
STUDY_TEXTS = ("StudyDescription", "RequestedProcedureDescription", "PerformedProcedureStepDescription")
STUDY_CODES = ("ProcedureCodeSequence", "RequestedProcedureCodeSequence")


def judge(dataset: Dataset, rules: SelectionSettings, population: Population | None) -> None:
    """Return when an image may be classified, else say why not.

    Parameters
    ----------
    dataset : Dataset
        The image's header; Pixel Data is not looked at.
    rules : SelectionSettings
        The site's rules.
    population : Population or None
        Whom the model was made for. Its views are enforced unless ``rules.population_override`` gives a reason in
        writing, its ages unless ``rules.age_rule`` is off too.

    Raises
    ------
    Refused
        Code ``non-human``, ``modality``, ``for-processing``, ``localizer``, ``body-part``, ``body-part-missing``,
        ``view``, ``view-missing``, ``age``, ``age-missing`` or ``malformed``.
    """
    with malformed.refused("the image's header"):
        image = _words(dataset, IMAGE_TEXTS, IMAGE_CODES)
        study = _words(dataset, STUDY_TEXTS, STUDY_CODES)
        _judge_human(dataset, image | study)
        _judge_modality(dataset, rules)
        _judge_body_part(dataset, rules, image, study)
        _judge_view(dataset, rules, population, image, study)
        if population is not None and rules.age_rule == "enforce":
            _judge_age(dataset, rules, population)


def _judge_human(dataset: Dataset, words: set[str]) -> None:
    species = _text(dataset, "PatientSpeciesDescription")
    coded = _codes(dataset, "PatientSpeciesCodeSequence")
    kept_by_owner = _text(dataset, "ResponsiblePersonRole") == "OWNER"
    veterinary = any(word.startswith("VETERIN") for word in _words(dataset, ("InstitutionName",), ()))
    if (
        (species and species not in vocabulary.HUMAN_WORDS)
        or (coded and not coded <= vocabulary.HUMAN_CODES)
        or any(dataset.get(keyword) for keyword in vocabulary.ANIMAL_ATTRIBUTES)
        or kept_by_owner
        or veterinary
        or words & vocabulary.ANIMAL_WORDS
    ):
        raise Refused(
            "the image is not of a human (species, breed or owner is recorded, or a description names an animal); the "
            "models are for people alone and no setting changes that",
            code="non-human",
        )


def _judge_modality(dataset: Dataset, rules: SelectionSettings) -> None:
    modality = _text(dataset, "Modality")
    if modality not in rules.modalities:
        raise Refused(
            f"Modality (0008,0060) is {vocabulary.spoken(modality, vocabulary.MODALITIES)}; selection.modalities takes "
            f"{_listed(rules.modalities)}",
            code="modality",
        )
    for_processing = dataset.get("SOPClassUID") == DigitalXRayImageStorageForProcessing
    if for_processing or _text(dataset, "PresentationIntentType") == "FOR PROCESSING":
        raise Refused(
            "PresentationIntentType (0008,0068) is FOR PROCESSING, raw detector values: have the modality send its FOR "
            "PRESENTATION image",
            code="for-processing",
        )
    if {"LOCALIZER", "SCOUT"} & _words(dataset, ("ImageType",), ()):
        raise Refused("ImageType (0008,0008) says localizer, which is no diagnostic image", code="localizer")


def _judge_body_part(dataset: Dataset, rules: SelectionSettings, image: set[str], study: set[str]) -> None:
    def contradicts(tag: str) -> Refused:
        return Refused(
            f"{tag} names another part of the body than selection.body_parts takes ({_listed(rules.body_parts)})",
            code="body-part",
        )

    wanted = vocabulary.CHEST_WORDS | {_plain(part) for part in rules.body_parts}
    examined = _text(dataset, "BodyPartExamined")
    region = _codes(dataset, "AnatomicRegionSequence")
    if examined and examined not in {part.upper() for part in rules.body_parts}:
        raise Refused(
            f"BodyPartExamined (0018,0015) is {vocabulary.spoken(examined, vocabulary.BODY_PARTS)}; "
            f"selection.body_parts takes {_listed(rules.body_parts)}",
            code="body-part",
        )
    if not examined and region and not region & vocabulary.CHEST_CODES:
        raise contradicts("AnatomicRegionSequence (0008,2218)")
    if examined or region:
        # Consoles often fill the tag by default: the words of this image still count, unless they name the chest too.
        if image & vocabulary.OTHER_PARTS and not image & wanted:
            raise contradicts("the series or protocol description")
        return
    for words, where in ((image, "the series or protocol description"), (study, "the study or procedure description")):
        if words & vocabulary.OTHER_PARTS:
            raise contradicts(where)
        if words & wanted:
            return
    if rules.missing.body_part == "refuse":
        raise Refused(
            "neither BodyPartExamined (0018,0015), nor AnatomicRegionSequence (0008,2218), nor a description says what "
            "part of the body this is; selection.missing.body_part = 'accept' would take it",
            code="body-part-missing",
        )


def _judge_view(
    dataset: Dataset, rules: SelectionSettings, population: Population | None, image: set[str], study: set[str]
) -> None:
    allowed, source = views_taken(rules, population), "selection.views"
    if population is not None and not rules.population_override.strip():
        source = "selection.views and the model's intended population"

    takes = f"{source} takes {_listed(sorted(allowed))}"
    named = _views_in(image)
    position = _text(dataset, "ViewPosition")
    codes = _codes(dataset, "ViewCodeSequence")
    if position:
        possible = {position}
        tag = f"ViewPosition (0018,5101) is {vocabulary.spoken(position, vocabulary.VIEW_POSITIONS)}"
    elif codes:
        possible = set().union(*(vocabulary.VIEW_CODES.get(code, {"other"}) for code in codes))
        tag = "ViewCodeSequence (0054,0220) names another view"
    else:
        possible, tag = named or _views_in(study), "the descriptions name another view, or several"
    if not possible <= allowed:
        raise Refused(f"{tag}; {takes}", code="view")
    # Consoles fill the view by default as well: what contradicts it wins.
    if named and not named & allowed:
        raise Refused(f"the series or protocol description names another view; {takes}", code="view")
    if _text(dataset, "PatientOrientation")[:1] in ("A", "P"):
        raise Refused(
            f"the rows run from front to back, so this is a lateral view (PatientOrientation (0020,0020)); {takes}",
            code="view",
        )
    if not possible and rules.missing.view == "refuse":
        raise Refused(
            "neither ViewPosition (0018,5101), nor ViewCodeSequence (0054,0220), nor a description says how the X-rays "
            "passed; selection.missing.view = 'accept' would take it",
            code="view-missing",
        )


def _views_in(words: set[str]) -> set[str]:
    return set().union(*(views for names, views in vocabulary.VIEW_WORDS if words & names))


def _judge_age(dataset: Dataset, rules: SelectionSettings, population: Population) -> None:
    age = age_years(dataset)
    if age is None:
        if rules.missing.age == "refuse":
            raise Refused(
                "neither PatientAge (0010,1010) nor PatientBirthDate (0010,0030) gives the age that the model's "
                "intended population needs; selection.missing.age = 'accept' would take it",
                code="age-missing",
            )
    elif not is_of_age(age, population):
        raise Refused(
            f"the patient's age is not among those that the model was made for ({population.min_age_years:g} to "
            f"{population.max_age_years:g} years); selection.age_rule = 'off' with a written reason in "
            "selection.population_override would take it",
            code="age",
        )


def views_taken(rules: SelectionSettings, population: Population | None) -> frozenset[str]:
    """View positions that the site's rules and, unless they leave it in writing, the population allow."""
    if population is None or rules.population_override.strip():
        return frozenset(rules.views)
    return frozenset(rules.views).intersection(population.views)


def is_of_age(years: float, population: Population) -> bool:
    """Tell whether an age is among those of a population, whose last year is included whole."""
    return population.min_age_years <= years < population.max_age_years + 1


def age_years(dataset: Dataset) -> float | None:
    """Age at the study.

    Parameters
    ----------
    dataset : Dataset
        PatientAge is read first (``005Y``, ``018M``, ``030W``, ``010D``; a bare number means years), else the time from
        PatientBirthDate to StudyDate.

    Returns
    -------
    float or None
        Years, 0..150; a full year is counted on the birthday. None where no tag gives a usable age.
    """
    stated = re.fullmatch(r"(\d{1,3})\s*([DWMY]?)", _text(dataset, "PatientAge"))
    if stated:
        age = int(stated[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12, "Y": 1, "": 1}[stated[2]]
        return age if age <= 150 else None
    born, studied = _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate")
    if born is None or studied is None or studied < born:
        return None
    years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    since_birthday = (studied.year - born.year - years) * 12 + studied.month - born.month
    age = years + max(0.0, (since_birthday + (studied.day - born.day) / 31) / 12)
    return age if age <= 150 else None


def _date(dataset: Dataset, keyword: str) -> date | None:
    try:
        return date.fromisoformat(_text(dataset, keyword))
    except ValueError:  # de-identified files hold hashes, zeros or nothing here: the same as no date
        return None


def _text(dataset: Dataset, keyword: str) -> str:
    """Return the first value as upper-case text, empty where absent."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, str):
        return (value or "").strip().upper()
    values = list(value) if hasattr(value, "__iter__") else [value]
    return str(values[0]).strip().upper() if values else ""


def _codes(dataset: Dataset, keyword: str) -> set[str]:
    """Code values of a sequence; SNOMED's two spellings (SRT and SCT) never collide, so the scheme is left out."""
    items = dataset.get(keyword) or ()
    return {str(item.get("CodeValue", "")).strip().upper() for item in items} - {""}


def _words(dataset: Dataset, texts: Iterable[str], sequences: Iterable[str]) -> set[str]:
    """Every word, upper case and without accents, of some texts and of some codes' meanings."""
    found = [str(dataset.get(keyword) or "") for keyword in texts]
    for keyword in sequences:
        found += [str(item.get("CodeMeaning") or "") for item in dataset.get(keyword) or ()]
    return set(re.findall(r"[A-Z]+", _plain(" ".join(found).replace("_", " "))))


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).upper()


def _listed(terms: Iterable[str]) -> str:
    return ", ".join(terms) or "none"
