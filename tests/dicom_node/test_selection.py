"""Selection: human frontal chests of the intended age pass, and each refusal says why without the patient's values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement

from dicom_node import phantom, selection, vocabulary
from dicom_node.core.errors import Refused
from dicom_node.core.settings import MissingTagRules, Population, SelectionSettings
from tests.dicomfiles import radiograph

CHILDREN = Population(min_age_years=1, max_age_years=5)
STRICT = SelectionSettings()
ANY_AGE = SelectionSettings(age_rule="off", population_override="a test of the other rules")
TOLERANT = SelectionSettings(missing=MissingTagRules(body_part="accept", view="accept", age="accept"))
PICTURE = np.zeros((64, 64), np.uint8)


def image(**attributes: Any) -> Dataset:
    """An eligible phantom with some attributes changed; None removes one."""
    dataset = phantom.dataset(PICTURE, study=phantom.Study("selection"))
    for keyword, value in attributes.items():
        if value is None:
            del dataset[keyword]
        elif isinstance(value, str):
            dataset[keyword] = DataElement(keyword, dictionary_VR(keyword), value, validation_mode=0)
        else:
            setattr(dataset, keyword, value)
    return dataset


def silent(**attributes: Any) -> Dataset:
    """A phantom whose tags and texts say neither part of the body nor view."""
    keep_quiet = dict.fromkeys(("BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence"))
    texts = {"SeriesDescription": "", "StudyDescription": "", "RequestAttributesSequence": None}
    return image(**{**keep_quiet, **texts, **attributes})


def code(value: str, meaning: str = "-") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def verdict(dataset: Dataset, rules: SelectionSettings = STRICT, population: Population | None = CHILDREN) -> str:
    try:
        selection.judge(dataset, rules, population)
    except Refused as refused:
        assert 40 < len(str(refused)) < 330  # noqa: PT017 - every reason of this file goes through here
        return refused.code
    return "eligible"


@pytest.mark.parametrize("view", ["AP", "PA"])
@pytest.mark.parametrize("sop_class", ["DX", "CR"])
def test_a_phantom_is_eligible(sop_class: Any, view: Any) -> None:
    assert verdict(radiograph(PICTURE, sop_class=sop_class, view=view)) == "eligible"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PatientSpeciesDescription": "Canine species"}, "non-human"),
        ({"PatientSpeciesDescription": "Homo sapiens"}, "eligible"),
        ({"PatientSpeciesCodeSequence": [code("448771007", "Canis lupus familiaris")]}, "non-human"),
        ({"PatientSpeciesCodeSequence": [code("337915000", "Homo sapiens")]}, "eligible"),
        ({"PatientBreedDescription": "Beagle"}, "non-human"),
        ({"PatientSexNeutered": "ALTERED"}, "non-human"),
        ({"BreedRegistrationSequence": [Dataset()]}, "non-human"),
        ({"ResponsiblePersonRole": "OWNER"}, "non-human"),
        ({"ResponsiblePersonRole": "PARENT"}, "eligible"),
        ({"InstitutionName": "Veterinärklinik"}, "non-human"),
        ({"AcquisitionDeviceProcessingDescription": "CANINE LATERAL THORAX 0-15cm"}, "non-human"),
        ({"PerformedProtocolCodeSequence": [code("1", "Thorax, feline")]}, "non-human"),
        ({"StudyDescription": "Hund Thorax"}, "non-human"),
        ({"Modality": "CT"}, "modality"),
        ({"Modality": ""}, "modality"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for-processing"),
        ({"SOPClassUID": uid.DigitalXRayImageStorageForProcessing}, "for-processing"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"BodyPartExamined": "HIP"}, "body-part"),
        ({"BodyPartExamined": "CHESTABDOMEN"}, "body-part"),
        ({"BodyPartExamined": "Thorax"}, "eligible"),
        ({"BodyPartExamined": None, "AnatomicRegionSequence": [code("T-D3000")]}, "eligible"),
        ({"BodyPartExamined": None, "AnatomicRegionSequence": [code("29836001", "Hip")]}, "body-part"),
        ({"SeriesDescription": "Hand PA"}, "body-part"),
        ({"SeriesDescription": "Thoracic spine AP"}, "body-part"),
        ({"SeriesDescription": "Chest and abdomen AP"}, "eligible"),
        ({"ViewPosition": "LL"}, "view"),
        ({"ViewPosition": "RLD"}, "view"),
        ({"ViewPosition": None, "ViewCodeSequence": [code("399173006", "left lateral")]}, "view"),
        ({"ViewPosition": None, "ViewCodeSequence": [code("R-10206")]}, "eligible"),
        ({"ViewPosition": None, "ViewCodeSequence": [code("399033003", "frontal")]}, "eligible"),
        ({"SeriesDescription": "Chest lateral"}, "view"),
        ({"PatientOrientation": ["P", "F"]}, "view"),
        ({"PatientAge": "006Y"}, "age"),
        ({"PatientAge": "011M"}, "age"),
        ({"PatientAge": "012M"}, "eligible"),
        ({"PatientAge": "062"}, "age"),
        ({"PatientAge": "5"}, "eligible"),
        ({"PatientAge": "", "PatientBirthDate": ""}, "age-missing"),
        ({"PatientAge": "", "PatientBirthDate": "20180518"}, "eligible"),  # the sixth birthday is tomorrow
        ({"PatientAge": "", "PatientBirthDate": "20180517"}, "age"),
        ({"PatientAge": "", "PatientBirthDate": "20230517"}, "eligible"),
        ({"PatientAge": "", "PatientBirthDate": "20230518"}, "age"),
    ],
    ids=str,
)
def test_one_attribute_decides(attributes: dict[str, Any], expected: str) -> None:
    assert verdict(image(**attributes)) == expected


@pytest.mark.parametrize(
    ("attributes", "strict", "tolerant"),
    [
        ({}, "body-part-missing", "eligible"),
        ({"SeriesDescription": "Thorax ap"}, "eligible", "eligible"),
        ({"StudyDescription": "Tórax PA"}, "eligible", "eligible"),
        ({"StudyDescription": "radio thorax de face"}, "eligible", "eligible"),
        ({"ProtocolName": "CHEST"}, "view-missing", "eligible"),
        ({"ViewPosition": "PA"}, "body-part-missing", "eligible"),
        ({"SeriesDescription": "MODALITYLUT - TEETH"}, "body-part", "body-part"),
        ({"StudyDescription": "HIP JOINT"}, "body-part", "body-part"),
        ({"SeriesDescription": "Thorax AP", "StudyDescription": "Chest and hip"}, "eligible", "eligible"),
        ({"StudyDescription": "Thoracic spine AP"}, "body-part", "body-part"),
        ({"SeriesDescription": "Chest LAT"}, "view", "view"),
        ({"BodyPartExamined": "CHEST", "StudyDescription": "CHEST PA AND LATERAL"}, "view", "view"),
        ({"PatientAge": "", "BodyPartExamined": "CHEST", "ViewPosition": "AP", "PatientBirthDate": ""},
         "age-missing", "eligible"),
    ],
    ids=str,
)  # fmt: skip
def test_where_tags_are_missing_words_speak_and_silence_is_the_sites_choice(
    attributes: dict[str, Any], strict: str, tolerant: str
) -> None:
    assert verdict(silent(**attributes)) == strict
    assert verdict(silent(**attributes), TOLERANT) == tolerant


def test_a_site_may_narrow_body_parts_and_views() -> None:
    only_pa = SelectionSettings(views=("PA",), body_parts=("LUNG",))
    assert verdict(image(), only_pa) == "body-part"
    assert verdict(image(BodyPartExamined="LUNG"), only_pa) == "view"
    assert verdict(image(BodyPartExamined="LUNG", ViewPosition="PA", SeriesDescription=""), only_pa) == "eligible"


def test_the_models_population_holds_unless_the_site_overrides_it_in_writing() -> None:
    model = Population(min_age_years=1, max_age_years=5, views=("PA",))
    written = SelectionSettings(population_override="validated here on AP images, Dr. A, 2024-05-17")
    assert verdict(image(), STRICT, model) == "view"
    assert verdict(image(), written, model) == "eligible"
    assert verdict(image(PatientAge="040Y"), written, model) == "age"
    assert verdict(image(PatientAge="040Y"), ANY_AGE, model) == "eligible"
    assert verdict(image(PatientAge="040Y"), STRICT, None) == "eligible"


@pytest.mark.parametrize(
    ("stated", "born", "years"),
    [
        ("018M", "", 1.5),
        ("052W", "", pytest.approx(52 * 7 / 365.25)),
        ("010D", "", 10 / 365.25),
        ("999Y", "", None),
        ("ABC", "20200517", 4.0),
        ("", "20200518", pytest.approx(4.0, abs=0.01)),
        ("", "20250101", None),
        ("", "00000000", None),
        ("", "18000101", None),
    ],
)
def test_age_is_read_from_either_tag(stated: str, born: str, years: Any) -> None:
    dataset = image()
    for keyword, value in (("PatientAge", stated), ("PatientBirthDate", born)):
        dataset[keyword] = DataElement(keyword, "LO", value)
    assert selection.age_years(dataset) == years


@settings(max_examples=200, deadline=None)
@given(st.dates(), st.dates())
def test_age_is_below_the_next_birthday(born: Any, studied: Any) -> None:
    dataset = image(PatientAge="")
    dataset["PatientBirthDate"] = DataElement("PatientBirthDate", "LO", born.strftime("%Y%m%d").zfill(8))
    dataset["StudyDate"] = DataElement("StudyDate", "LO", studied.strftime("%Y%m%d").zfill(8))
    age = selection.age_years(dataset)
    whole = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    assert age is None if whole < 0 or whole > 150 else age is None or int(age) == whole


def test_reasons_name_tags_and_settings_and_never_values() -> None:
    secrets = {"PatientAge": "087Y", "BodyPartExamined": "DOE JANE", "ViewPosition": "DOE JANE", "Modality": "DOE JANE"}
    for keyword, value in secrets.items():
        with pytest.raises(Refused, match=r"\(00[0-9A-F]{2},[0-9A-F]{4}\)|selection\.age_rule") as caught:
            selection.judge(image(**{keyword: value}), STRICT, CHILDREN)
        assert "selection." in str(caught.value)
        assert "DOE" not in str(caught.value)
        assert "87" not in str(caught.value)
    with pytest.raises(Refused, match=r"Modality \(0008,0060\) is MR; selection.modalities takes CR, DX"):
        selection.judge(image(Modality="MR"), STRICT, CHILDREN)


GARBAGE = st.one_of(st.none(), st.just(""), st.just([]), st.binary(max_size=3), st.integers(-5, 5), st.text(max_size=5))


@settings(max_examples=150, deadline=None)
@given(
    keyword=st.sampled_from(
        [
            *(*selection.IMAGE_TEXTS, *selection.IMAGE_CODES, *selection.STUDY_TEXTS, *selection.STUDY_CODES),
            *(*vocabulary.ANIMAL_ATTRIBUTES, "PatientSpeciesCodeSequence", "PatientSpeciesDescription", "Modality"),
            *("ImageType", "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence"),
            *("PatientOrientation", "PatientAge", "PatientBirthDate", "StudyDate", "SOPClassUID"),
        ]
    ),
    value=GARBAGE,
)
def test_garbage_in_any_attribute_ends_in_a_verdict(keyword: str, value: Any) -> None:
    dataset = image()
    dataset[keyword] = DataElement(keyword, "LO", value, already_converted=True, validation_mode=0)
    assert verdict(dataset)


@pytest.mark.parametrize(
    ("name", "plain", "accepting"),
    [
        ("cr_chest_mono1_10bit_no_preamble_implicit_raw", "eligible", "eligible"),
        ("cr_chest_mono1tag_8bit_jpeg_baseline_rsna.dcm", "eligible", "eligible"),
        ("cr_chest_mono2_8bit_jpeg_baseline_rsna.dcm", "eligible", "eligible"),
        ("dx_chest_mono1_12bit_j2k_lossless_966_fixed.dcm", "eligible", "eligible"),
        ("dx_chest_nih_google_implicit.dcm", "body-part-missing", "eligible"),
        ("dx_thorax_mono1_8bit_explicit_small.dcm", "non-human", "non-human"),
        ("cr_teeth_mono1_modalitylutseq_jpegll.dcm", "body-part", "body-part"),
        ("notchest/cr_hip_RG2_JPLY_fixed.dcm", "body-part", "body-part"),
        ("notchest/ct_small.dcm", "modality", "modality"),
        ("notchest/mr_small.dcm", "modality", "modality"),
        ("ot_testpattern_modalitylutseq.dcm", "modality", "modality"),
        ("ot_testpattern_voilutseq.dcm", "modality", "modality"),
        ("ot_voi_and_modality_lut_jpegll16.dcm", "modality", "modality"),
    ],
)
def test_real_files_are_judged_for_what_they_show(name: str, plain: str, accepting: str, pneumonia_data: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(pneumonia_data / "dicom_chest" / name, force=True)
    accept = ANY_AGE.model_copy(update={"missing": MissingTagRules(body_part="accept", view="accept")})
    assert verdict(dataset, ANY_AGE) == plain
    assert verdict(dataset, accept) == accepting
    if plain == "eligible":  # adults, or without an age
        assert verdict(dataset, STRICT) in ("age", "age-missing")
