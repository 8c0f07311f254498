"""The report as data: what a reader, a viewer and another program find in it."""

from __future__ import annotations

import datetime
import io

import pydicom
import pytest
from highdicom import sr
from pydicom.dataset import Dataset

from secure_infer import report
from secure_infer.report import codes, wording
from tests.secure_infer.report import samples
from tests.secure_infer.report.test_conformance import walk

PRESENT, ABSENT, UNDETERMINED = (samples.ANSWERS[word] for word in ("present", "absent", "undetermined"))


def one(answer: samples.Answer, **options: object) -> Dataset:
    return samples.structured([samples.analysed(samples.source(), answer)], **options)


def read_back(dataset: Dataset) -> sr.Comprehensive3DSR:
    found = sr.srread(io.BytesIO(report.encode(dataset)))
    assert isinstance(found, sr.Comprehensive3DSR)
    return found


@pytest.mark.parametrize("answer", samples.ANSWERS.values(), ids=samples.ANSWERS)
def test_highdicom_reads_certainty_outline_and_presence_back(answer: samples.Answer) -> None:
    analysed = samples.analysed(samples.source(), answer)
    (group,) = read_back(samples.structured([analysed])).content.get_image_measurement_groups()
    (certainty,) = group.get_measurements(codes.CERTAINTY_OF_FINDING)
    assert certainty.value == pytest.approx(100 * answer.pneumonia, abs=0.005)
    assert certainty.unit == codes.PERCENT
    (outline,) = certainty.referenced_coordinates
    assert [tuple(point) for point in outline.value.tolist()] == list(analysed.region.polyline)
    (presence,) = group.get_qualitative_evaluations(codes.PNEUMONIA)
    assert presence.value == codes.PRESENCE[answer.answer]
    assert group.finding_type is None


def test_the_report_is_complete_unverified_and_preliminary_in_a_new_series_of_the_study() -> None:
    dataset = one(PRESENT)
    flags = dataset.CompletionFlag, dataset.VerificationFlag, dataset.PreliminaryFlag
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert dataset.SeriesDescription == "AI pneumonia PRESENT 97 % (unverified)"
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert dataset.StudyInstanceUID == samples.source().StudyInstanceUID
    (contribution,) = dataset.ContributingEquipmentSequence
    assert (contribution.ManufacturerModelName, contribution.SoftwareVersions) == ("chest-pneumonia", "1.2.0")
    assert read_back(dataset).get_evidence() == [
        tuple(
            samples.source()[k].value
            for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
        )
    ]


def test_the_observer_and_the_algorithm_are_identified() -> None:
    dataset = read_back(one(ABSENT))
    (context,) = dataset.content.get_observer_contexts()
    assert context.observer_identifying_attributes.name == samples.DEVICE.name
    assert context.observer_identifying_attributes.uid == samples.DEVICE.uid
    texts = {
        (item.ConceptNameCodeSequence[0].CodeMeaning, item.TextValue)
        for item in walk(dataset)
        if item.get("ValueType") == "TEXT"
    }
    assert texts >= {
        ("Algorithm Name", "chest-pneumonia"),
        ("Algorithm Version", "1.2.0"),
        ("Algorithm Manufacturer", "VeilRay"),
        ("Algorithm Parameters", f"weights SHA-256: {'5f' * 32}"),
        ("Algorithm Parameters", "operating point: absent below 0.20, present from 0.60"),
        ("Algorithm Parameters", "engine: dealt 2PC"),
        ("Algorithm Parameters", "differential privacy of the training: epsilon 3, delta 0.0001"),
        ("Comment", wording.comment(ABSENT)),
    }


@pytest.mark.parametrize("write", [samples.structured, samples.text], ids=["data", "text"])
def test_the_same_inputs_give_the_same_bytes(write: object) -> None:
    def written() -> bytes:
        return report.encode(write([samples.analysed(samples.source(), PRESENT)]))

    # highdicom writes microseconds of the present into several attributes, so one leak would show.
    assert written() == written()


def test_another_seed_gives_another_report_and_series() -> None:
    first, second = one(PRESENT, seed="a"), one(PRESENT, seed="b")
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value != second[keyword].value
    text = samples.text([samples.analysed(samples.source(), PRESENT)], seed="a")
    assert text.SOPInstanceUID != first.SOPInstanceUID
    assert text.SeriesInstanceUID != first.SeriesInstanceUID


def test_a_measurement_without_a_region_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="region"):
        report.AnalysedImage(samples.source(), ABSENT)
    with pytest.raises(TypeError, match="has a region"):
        report.AnalysedImage(samples.source(), ABSENT, None)


@pytest.mark.parametrize("answer", samples.ANSWERS.values(), ids=samples.ANSWERS)
def test_every_measurement_group_has_an_scoord(answer: samples.Answer) -> None:
    images = [samples.analysed(samples.source(key=key), answer) for key in ("s1", "s2")]
    groups = [
        item
        for item in walk(samples.structured(images))
        if item.get("ConceptNameCodeSequence") and item.ConceptNameCodeSequence[0].CodeValue == "125007"
    ]
    assert len(groups) == 2
    for group in groups:
        assert [item.GraphicType for item in walk(group) if item.get("ValueType") == "SCOORD"] == ["POLYLINE"]


def test_a_region_outside_the_image_or_of_evidence_for_nothing_is_refused() -> None:
    beyond = report.frame(10 * samples.ROWS, samples.COLUMNS)
    with pytest.raises(ValueError, match="leaves the image"):
        report.AnalysedImage(samples.source(), ABSENT, beyond)
    evidence = report.region_from_evidence(samples.evidence(), samples.ROWS, samples.COLUMNS)
    for answer in (ABSENT, UNDETERMINED):
        with pytest.raises(ValueError, match="only a positive answer"):
            report.AnalysedImage(samples.source(), answer, evidence)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        samples.analysed(samples.source(), samples.Answer("absent", probability))


def test_kinds_of_pneumonia_carry_their_own_probability_and_only_where_there_may_be_one() -> None:
    def kinds(answer: samples.Answer) -> dict[str, tuple[str, float]]:
        return {
            item.ConceptNameCodeSequence[0].CodeMeaning: (
                item.ConceptCodeSequence[0].CodeMeaning,
                float(item.ContentSequence[0].MeasuredValueSequence[0].NumericValue),
            )
            for item in walk(one(answer))
            if item.get("ValueType") == "CODE" and "ContentSequence" in item
        }

    expected = {"Bacterial pneumonia": ("Undetermined", 63.0), "Viral pneumonia": ("Undetermined", 34.3)}
    assert kinds(PRESENT) == expected
    assert list(kinds(UNDETERMINED)) == ["Bacterial pneumonia", "Viral pneumonia"]
    assert kinds(ABSENT) == {}
    assert kinds(samples.Answer("present", 0.9)) == {}


def test_several_images_make_one_report_with_a_group_each_and_the_gravest_answer() -> None:
    images = [samples.analysed(samples.source(key=f"s{n}"), a) for n, a in enumerate((ABSENT, PRESENT, UNDETERMINED))]
    dataset = samples.structured(images)
    assert dataset.SeriesDescription == "AI pneumonia PRESENT 97 % (unverified)"
    groups = read_back(dataset).content.get_image_measurement_groups()
    values = [group.get_qualitative_evaluations(codes.PNEUMONIA)[0].value.meaning for group in groups]
    assert values == ["Absent", "Present", "Undetermined"]
    assert len({group.tracking_uid for group in groups}) == 3
    assert len(read_back(dataset).get_evidence()) == 3
    assert len(dataset.ReferencedRequestSequence) == 1


def test_images_of_two_studies_or_none_make_no_report() -> None:
    images = [samples.analysed(samples.source(key=key), ABSENT) for key in ("a", "b")]
    for wrong in (images, []):
        with pytest.raises(ValueError, match="one or more images of one study"):
            samples.structured(wrong)


def test_a_report_names_the_one_it_replaces() -> None:
    first = one(PRESENT, seed="first")
    predecessor = report.Predecessor(first.SOPClassUID, first.SOPInstanceUID, first.SeriesInstanceUID)
    (study,) = one(ABSENT, seed="second", predecessor=predecessor).PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == first.StudyInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == first.SOPClassUID


def test_dates_are_written_in_the_time_zone_that_the_source_states() -> None:
    image = samples.source()
    image.TimezoneOffsetFromUTC = "+0930"
    created = datetime.datetime(2026, 3, 4, 20, 0, tzinfo=datetime.UTC)
    analysed = [samples.analysed(image, ABSENT)]
    dataset = report.structured_report(analysed, samples.ALGORITHM, samples.DEVICE, created=created, seed="zone")
    assert (str(dataset.ContentDate), str(dataset.ContentTime)) == ("20260305", "053000")
    assert dataset.TimezoneOffsetFromUTC == "+0930"


def test_the_text_report_says_the_same_in_findings_and_conclusions() -> None:
    images = [samples.analysed(samples.source(key=f"s{n}"), a) for n, a in enumerate((ABSENT, PRESENT))]
    dataset = pydicom.dcmread(io.BytesIO(report.encode(samples.text(images))))
    assert dataset.ConceptNameCodeSequence[0].CodeValue == "18748-4"
    assert dataset.SeriesDescription == "AI pneumonia PRESENT 97 % (unverified), text"
    sections = {
        item.ConceptNameCodeSequence[0].CodeMeaning: [child.TextValue for child in item.ContentSequence]
        for item in dataset.ContentSequence
        if item.ValueType == "CONTAINER"
    }
    assert sections["Findings"] == [
        "Image 1 of 2: The algorithm finds no signs of pneumonia; its estimated probability is 4.2 %.",
        "Image 2 of 2: The algorithm finds signs of pneumonia; its estimated probability is 97.3 %.",
        "Image 2 of 2: Estimated probability of bacterial pneumonia 63.0 % and of viral pneumonia 34.3 %.",
        "Image 2 of 2: The area that speaks for pneumonia is outlined in the measurement report.",
    ]
    assert sections["Conclusions"] == [
        "Pneumonia PRESENT according to the algorithm (97.3 %).",
        wording.UNVERIFIED,
        samples.ALGORITHM.intended_use,
    ]


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "0 %"), (0.004, "<1 %"), (0.0421, "4 %"), (0.5, "50 %"), (0.996, ">99 %"), (1.0, "100 %")],
)
def test_a_percentage_never_claims_a_certainty_that_is_none(probability: float, text: str) -> None:
    assert wording.percent(probability) == text
