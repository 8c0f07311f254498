"""A hospital's rows: one per patient who agrees now, and nothing is left of whoever left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_node import phantom, pixels
from dicom_node.core.database import Database
from dicom_node.core.settings import Population
from dicom_node.store import Store
from dicom_node.training import consent, labels, subjects
from dicom_node.training.consent import Change, Decision
from dicom_node.training.diagnosis import Diagnosis
from dicom_node.training.site_key import open_key
from dicom_node.training.subjects import Pseudonyms
from fl_agent.features import FeatureCache
from fl_agent.site_images import SiteImages
from fl_agent.site_rows import Rows, SiteRows
from fl_agent.trainset import VIEWS
from secure_infer.network import Trunk
from tests import raw_peer
from tests.scp_process import site

CHILDREN = Population(min_age_years=1, max_age_years=5)


class Hospital:
    """Five phantom patients; all but the fifth agreed."""

    def __init__(self, folder: Path) -> None:
        settings = site(folder / "state")
        self.database = Database(settings.database_url)
        self.database.migrate()
        store = Store(settings, self.database, clock=lambda: 1000.0)
        key = open_key(settings.training_key, self.database)
        self.names = Pseudonyms(key, "")
        self.trunk = Trunk(("block13",))
        self.cache = folder / "cache"
        self.images = {}
        for number in range(1, 6):
            image = phantom.dataset(
                phantom.draw(number, "clear", (160, 200)), study=phantom.Study.numbered(number, key="rows")
            )
            if number == 4:
                image.ViewPosition = "LL"
            self.images[number] = image
            store.add_file(raw_peer.part10(image), "MODALITY")
        subjects.refresh(self.database, store, self.names, lambda done, total: None)
        said = (Diagnosis.NORMAL, Diagnosis.VIRAL, Diagnosis.PNEUMONIA, Diagnosis.BACTERIAL, Diagnosis.NORMAL)
        with self.database.write() as connection:
            for number, value in enumerate(said, start=1):
                labels.put(connection, number, labels.LIST, value, "test", 1.0)
        for number in range(1, 5):
            self.decide(number, Decision.GIVEN)
        images = SiteImages(self.database, store, key, settings.selection, CHILDREN)
        self.site = SiteRows(images, FeatureCache(self.cache, self.trunk, VIEWS))

    def decide(self, number: int, decision: Decision) -> None:
        change = Change(self.names.patient(f"PHANTOM-{number}", ""), decision)
        with self.database.write() as connection:
            consent.record(connection, [change], "test", 2.0)

    def read(self) -> Rows:
        return self.site.read(3.0, lambda done, total: None)

    def key(self, number: int) -> str:
        return self.names.patient(f"PHANTOM-{number}", "").key


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    opened = Hospital(tmp_path)
    yield opened
    opened.database.close()


def test_every_patient_who_agreed_has_one_row_or_a_reason_and_a_withdrawal_erases_all(hospital: Hospital) -> None:
    rows = hospital.read()
    assert dict(zip(rows.patients, rows.labels.tolist(), strict=True)) == {hospital.key(1): 0, hospital.key(2): 2}
    assert rows.left_out == {"kind-unknown": 1, "view": 1}
    expected = hospital.trunk.features(pixels.from_dataset(hospital.images[2]).image[:, ::-1]).mean((1, 2))
    np.testing.assert_allclose(rows.features[rows.patients.index(hospital.key(2)), 1], expected, atol=1e-6)

    assert len(list(hospital.cache.iterdir())) == 2
    again = hospital.read()
    np.testing.assert_array_equal(again.features, rows.features)

    hospital.decide(2, Decision.WITHDRAWN)
    assert hospital.read().patients == (hospital.key(1),)
    assert len(list(hospital.cache.iterdir())) == 1
    hospital.decide(1, Decision.WITHDRAWN)
    empty = hospital.read()
    assert empty.features.shape == (0, 2, 192)
    assert list(hospital.cache.iterdir()) == []
