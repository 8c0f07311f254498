"""A site with a key, a store and a few phantom studies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from pydicom import Dataset

from dicom_node import phantom
from dicom_node.core.database import Database
from dicom_node.store import Store
from dicom_node.training import subjects
from dicom_node.training.site_key import open_key
from dicom_node.training.subjects import Pseudonyms
from tests import raw_peer
from tests.scp_process import site

PICTURE = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)


class TrainingSite:
    """The records of one hospital, with the settings file of its commands."""

    def __init__(self, folder: Path) -> None:
        self.settings = site(folder / "state")
        self.config = folder / "site.toml"
        self.config.write_text(
            f'[site]\nname = "Test"\nstate_dir = "{folder / "state"}"\n[scp]\nminimum_free_bytes = 0\n'
            '[inference]\nengine = "plaintext"\n'
        )
        self.now = 1000.0
        self.database = Database(self.settings.database_url)
        self.database.migrate()
        self.store = Store(self.settings, self.database, clock=lambda: self.now)
        self.names = Pseudonyms(open_key(self.settings.training_key, self.database), "")

    def take(self, number: int, *, image: int = 1, **changes: str) -> Dataset:
        """Receive an image of phantom patient `number`."""
        study = phantom.Study.numbered(number, key=changes.pop("key", "training"))
        dataset = phantom.dataset(PICTURE, study=study, number=image)
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        self.now += 1
        self.store.add_file(raw_peer.part10(dataset), "MODALITY")
        return dataset

    def refresh(self) -> int:
        return subjects.refresh(self.database, self.store, self.names, lambda done, total: None)

    def rows(self, table: sa.Table) -> list[sa.Row]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(table).order_by(table.primary_key.columns[0])).all())


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[TrainingSite]:
    opened = TrainingSite(tmp_path)
    yield opened
    opened.database.close()
