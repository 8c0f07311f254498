"""Candidate against active model: on the patients that both answered, paired, and against obvious figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.database import job
from dicom_node.core.errors import Refused
from dicom_node.core.training_settings import HandoverSettings
from dicom_node.training.diagnosis import Diagnosis
from dicom_node.training.site_key import open_key
from fl_agent.handover.evaluation import AsReported, InTheClear, evaluate
from fl_agent.handover.policy import objections
from fl_agent.site_images import AgreedStudy, SiteImages
from secure_infer.answer import Answer
from secure_infer.models import ModelStore
from tests.fl_agent.handover import consortium
from tests.secure_infer.small_model import PUBLISHER_HEX

NOTHING = np.zeros((224, 224), dtype=np.float32)


class Patients:
    """Patients with given labels, in the place of a site's images; the third has no image that can be used."""

    def __init__(self, labels: list[Diagnosis], unusable: int = -1) -> None:
        self._labels, self._unusable = labels, unusable

    def agreed(self, now: float) -> list[AgreedStudy]:
        return [AgreedStudy(f"p{n}", n, label, (str(n),)) for n, label in enumerate(self._labels)]

    def image(self, digest: str) -> np.ndarray:
        if int(digest) == self._unusable:
            raise Refused("lateral", code="view")
        return NOTHING


class Scripted:
    """A model that gives each study the answer that a test wants."""

    def __init__(self, pneumonia: list[float | None]) -> None:
        self._pneumonia = pneumonia

    def answer(self, study: AgreedStudy, images: object) -> Answer | None:
        said = self._pneumonia[study.study_id]
        return None if said is None else Answer("undetermined", said, 0.7 * said, 0.3 * said)


def compare(labels: list[Diagnosis], new: list[float | None], old: list[float | None], unusable: int = -1):
    return evaluate(
        Patients(labels, unusable), Scripted(new), Scripted(old), 0.0, lambda done, total: None, replicates=200
    )


ILL, WELL = Diagnosis.BACTERIAL, Diagnosis.NORMAL


def test_a_perfect_candidate_beats_an_active_model_that_is_always_wrong() -> None:
    found = compare([ILL, ILL, WELL, WELL], [0.9, 0.8, 0.2, 0.1], [0.1, 0.2, 0.8, 0.9])
    assert (found.ill, found.healthy, found.left_out) == (2, 2, {})
    assert found.gain is not None
    assert (found.gain.value, found.gain.low, found.gain.high) == (1.0, 1.0, 1.0)
    assert found.candidate["auc_pneumonia"].value == 1.0
    assert found.active["sensitivity_at_half"].value == 0.0


@settings(max_examples=25, deadline=None)
@given(scores=st.lists(st.integers(0, 8), min_size=8, max_size=8))
def test_a_model_against_itself_gains_exactly_nothing(scores: list[int]) -> None:
    said = [score / 10 for score in scores]
    found = compare([ILL, WELL] * 4, said, said)
    assert found.gain is not None
    assert (found.gain.value, found.gain.low, found.gain.high) == (0.0, 0.0, 0.0)
    assert found.candidate == found.active


def test_the_interval_of_the_gain_is_narrower_than_of_either_figure() -> None:
    rng = np.random.default_rng(5)
    labels = [ILL if number % 2 else WELL for number in range(60)]
    base = [float(rng.normal(0.4 + 0.2 * (label is ILL), 0.2)) for label in labels]
    new, old = ([min(1.0, max(0.0, one + float(rng.normal(0, 0.01)))) for one in base] for _ in range(2))
    found = compare(labels, new, old)
    assert found.gain is not None
    width = found.active["auc_pneumonia"].high - found.active["auc_pneumonia"].low
    assert found.gain.high - found.gain.low < width / 3


def test_who_cannot_be_compared_is_counted_by_the_reason() -> None:
    found = compare([ILL, WELL, ILL, WELL, ILL], [0.9, None, 0.9, 0.1, 0.9], [0.9, 0.1, 0.9, 0.1, None], unusable=2)
    assert found.left_out == {"no-answer": 1, "view": 1, "not-answered-by-active": 1}
    assert (found.ill, found.healthy) == (1, 1)


def test_pneumonia_of_unknown_kind_counts_for_pneumonia_and_not_for_its_kind() -> None:
    kinds = [Diagnosis.BACTERIAL, Diagnosis.VIRAL, Diagnosis.PNEUMONIA, WELL]
    found = compare(kinds, [0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1])
    assert found.ill == 3
    assert found.candidate["auc_bacterial_viral"].value == 0.5  # the same share of both kinds in every answer
    without = compare([Diagnosis.VIRAL, Diagnosis.PNEUMONIA, WELL], [0.9, 0.8, 0.1], [0.9, 0.8, 0.1])
    assert "auc_bacterial_viral" not in without.candidate


@pytest.mark.parametrize("labels", [[], [ILL, ILL], [WELL]])
def test_without_both_ill_and_healthy_patients_nothing_is_claimed(labels: list[Diagnosis]) -> None:
    said: list[float | None] = [0.5] * len(labels)
    found = compare(labels, said, said)
    assert found.gain is None
    assert "auc_pneumonia" not in found.candidate
    assert any("cannot be compared" in one for one in objections(found, HandoverSettings(minimal_patients=1)))


def test_the_rules_look_at_numbers_and_at_the_lower_end_of_the_interval() -> None:
    labels = [ILL, WELL] * 10
    good = [0.9 if label is ILL else 0.1 for label in labels]
    worse = [*good[:-2], 0.1, 0.9]
    rules = HandoverSettings(minimal_patients=10, maximal_auc_drop=0.05)
    assert objections(compare(labels, good, worse), rules) == ()
    (drop,) = objections(compare(labels, worse, good), rules)
    assert "maximal_auc_drop is 0.05" in drop
    few = objections(compare(labels, good, good), rules.model_copy(update={"minimal_patients": 11}))
    assert [one.split(" patients")[0] for one in few] == ["10 ill", "10 healthy"]


def test_real_images_are_answered_by_the_gravest_and_recorded_answers_are_those_of_the_same_weights(
    tmp_path: Path,
) -> None:
    site = consortium.site(tmp_path)
    store = ModelStore(tmp_path / "made", [PUBLISHER_HEX])
    for version, slope in (("2", 1.0), ("3", -1.0)):
        consortium.publish(tmp_path / "made", version, slope)
    with consortium.opened(site) as database:
        consortium.five_patients(site, database)
        from dicom_node.store import Store

        key = open_key(site.training_key, database)
        images = SiteImages(database, Store(site, database), key, site.selection, store.card("2").population)
        bright, dark = (InTheClear(store.card(one), store.weights(one)) for one in ("2", "3"))
        found = evaluate(images, bright, dark, 3.0, lambda done, total: None, replicates=50)
        # The fifth patient did not agree; the first alone is healthy and dark.
        assert (found.ill, found.healthy, found.left_out) == (3, 1, {})
        assert found.gain is not None
        assert found.gain.value == 1.0

        (first, *_) = images.agreed(3.0)
        pair = [NOTHING, NOTHING + 1.0]
        assert bright.answer(first, pair) == bright.answer(first, pair[1:]) != bright.answer(first, pair[:1])

        said = {"answer": "present", "pneumonia": 0.9, "bacterial": 0.6, "viral": 0.3}
        for number, version in enumerate(("2", "3"), start=1):
            result = {**said, "pneumonia": 0.9 / number, "weights_sha256": store.card(version).weights_sha256}
            row = {
                "kind": "classify", "key": f"classify:{number}", "study_id": first.study_id, "state": "done",
                "payload": {}, "result": result, "created_at": 1.0, "run_at": 1.0,
            }  # fmt: skip
            with database.write() as connection:
                connection.execute(job.insert().values(row))
        assert AsReported(database, store.card("2")).answer(first, []) == Answer("present", 0.9, 0.6, 0.3)
        recorded = evaluate(images, bright, AsReported(database, store.card("2")), 3.0, lambda done, total: None)
        assert recorded.left_out == {"not-answered-by-active": 3}
