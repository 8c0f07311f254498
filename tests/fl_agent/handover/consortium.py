"""A site that infers in the clear, five phantom patients of it, and a consortium that publishes tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node import phantom
from dicom_node.core.database import Database
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from dicom_node.training import consent, labels, subjects
from dicom_node.training.consent import Change, Decision
from dicom_node.training.diagnosis import Diagnosis
from dicom_node.training.site_key import open_key
from dicom_node.training.subjects import Pseudonyms
from secure_infer.card import ModelCard
from secure_infer.models import ModelStore, encode_weights
from tests import raw_peer
from tests.secure_infer.small_model import PUBLISHER, PUBLISHER_HEX, card_of, head

#: The image itself enters the private part, so no trunk is run: the mean grey value decides.
MADE = head(1, 3, side=128)
LABELS = (Diagnosis.NORMAL, Diagnosis.VIRAL, Diagnosis.PNEUMONIA, Diagnosis.BACTERIAL, Diagnosis.NORMAL)


def site(folder: Path, **handover: Any) -> Settings:
    state = folder / "state"
    return Settings.model_validate(
        {
            "site": {"name": "here", "state_dir": state},
            "scp": {"minimum_free_bytes": 0},
            "inference": {"engine": "plaintext", "trusted_publishers": [PUBLISHER_HEX]},
            "training": {"handover": {"publisher": PUBLISHER_HEX, "minimal_patients": 2, **handover}},
        }
    )


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    database.migrate()
    try:
        yield database
    finally:
        database.close()


def card(version: str, slope: float = 1.0, **privacy: Any) -> tuple[ModelCard, bytes]:
    """A model that finds pneumonia where the image is bright (`slope` > 0) or dark, and its weights."""
    weights = {"head.weight": np.array([0.0, slope, slope]).reshape(3, 1, 1, 1), "head.bias": np.zeros(3)}
    encoded = encode_weights(weights)
    written = card_of(MADE, encoded, version).model_dump(mode="json")
    written["trunk"] = None
    written["preprocessing"] |= {"side": 128, "offset": 0, "divisor": 32}
    written["privacy"]["mechanisms"][0]["noise_multiplier"] = 10.0
    written["privacy"] |= privacy
    return ModelCard.model_validate(written), encoded


def publish(root: Path, version: str, slope: float = 1.0, **privacy: Any) -> Path:
    made, encoded = card(version, slope, **privacy)
    return ModelStore(root, [PUBLISHER_HEX]).publish(made, encoded, PUBLISHER)


def five_patients(settings: Settings, database: Database) -> None:
    """Studies that came, labels by `LABELS`, and the agreement of everybody but the fifth."""
    store = Store(settings, database, clock=lambda: 1000.0)
    names = Pseudonyms(open_key(settings.training_key, database), "")
    for number in range(1, 6):
        drawn = phantom.draw(number, "clear", (160, 200))
        shown = drawn // 2 if LABELS[number - 1] is Diagnosis.NORMAL else 128 + drawn // 2  # who is ill is brighter
        image = phantom.dataset(shown, study=phantom.Study.numbered(number, key="handover"))
        store.add_file(raw_peer.part10(image), "MODALITY")
    subjects.refresh(database, store, names, lambda done, total: None)
    with database.write() as connection:
        for number, value in enumerate(LABELS, start=1):
            labels.put(connection, number, labels.LIST, value, "test", 1.0)
        for number in range(1, 5):
            change = Change(names.patient(f"PHANTOM-{number}", ""), Decision.GIVEN)
            consent.record(connection, [change], "test", 2.0)
