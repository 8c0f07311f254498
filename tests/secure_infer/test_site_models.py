"""Which model answers at a site: a pointer that a running worker follows from the next study on, never unverified."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError, IntegrityError
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from secure_infer import site_models
from secure_infer.models import ModelStore, encode_weights
from secure_infer.service import Serving
from tests.secure_infer.small_model import PUBLISHER, PUBLISHER_HEX, card_of, head, weights_of

#: The image itself enters the private part, so no trunk is loaded.
MADE = head(1, 3, side=128)


def published(root: Path, version: str) -> Path:
    encoded = encode_weights(weights_of(MADE))
    card = card_of(MADE, encoded, version)
    whole = card.model_copy(
        update={"trunk": None, "preprocessing": card.preprocessing.model_copy(update={"side": 128})}
    )
    return ModelStore(root, [PUBLISHER_HEX]).publish(whole, encoded, PUBLISHER)


def site(folder: Path, **inference: str) -> Settings:
    given = {"engine": "plaintext", "trusted_publishers": [PUBLISHER_HEX], **inference}
    return Settings.model_validate({"site": {"name": "x", "state_dir": folder / "state"}, "inference": given})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return site(tmp_path)


@pytest.fixture
def serving(settings: Settings, tmp_path: Path) -> Iterator[Serving]:
    site_models.install(settings, published(tmp_path / "made", "2"))
    site_models.activate(settings, "2")
    database = Database(settings.database_url)
    database.migrate()
    opened = Serving(settings, database, Store(settings, database))
    yield opened
    opened.close()
    database.close()


def test_the_first_model_of_ones_own_does_not_answer_before_it_is_activated(settings: Settings, tmp_path: Path) -> None:
    assert site_models.version_in_use(settings) == "1.2.0"
    site_models.install(settings, published(tmp_path / "made", "2"))
    assert site_models.version_in_use(settings) == "1.2.0"
    assert site_models.site_card(settings).version == "1.2.0"
    site_models.activate(settings, "2")
    assert site_models.site_card(settings).version == "2"
    site_models.activate(settings, "1.2.0")
    assert site_models.site_card(settings).version == "1.2.0"


def test_a_hospital_that_infers_encrypted_keeps_no_weights(tmp_path: Path) -> None:
    endpoint = {"host": "h", "port": 1, "fingerprint": "0" * 64}
    tls = dict.fromkeys(("certificate", "key", "ca"), tmp_path / "x")
    settings = site(tmp_path, engine="dealt-2pc", party=endpoint, dealer=endpoint, tls=tls)
    site_models.install(settings, published(tmp_path / "made", "2"))
    assert list(site_models.own_folder(settings).rglob("weights.safetensors")) == []
    site_models.activate(settings, "2")


def test_an_altered_model_is_neither_installed_nor_activated(settings: Settings, tmp_path: Path) -> None:
    good, bad = published(tmp_path / "made", "2"), published(tmp_path / "made", "3")
    (bad / "weights.safetensors").write_bytes(b"x" + (bad / "weights.safetensors").read_bytes())
    with pytest.raises(IntegrityError):
        site_models.install(settings, bad)
    site_models.install(settings, good)
    (site_models.own_folder(settings) / "2" / "card.json").write_text("{}")
    with pytest.raises(IntegrityError):
        site_models.activate(settings, "2")
    assert site_models.version_in_use(settings) == "1.2.0"


def test_a_pinned_model_is_not_silently_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inference\.model pins 1\.2\.0") as refused:
        site_models.activate(site(tmp_path, model="1.2.0"), "2")
    assert refused.value.code == "model-pinned"


def test_a_running_worker_takes_up_what_is_activated_and_what_is_rolled_back_to(
    serving: Serving, settings: Settings, tmp_path: Path
) -> None:
    site_models.install(settings, published(tmp_path / "made", "3"))
    assert not serving.run_once()
    assert serving.about == {"model": "2", "engine": "plaintext"}
    for version in ("3", "2"):
        site_models.activate(settings, version)
        serving.run_once()
        assert serving.about["model"] == version


def test_a_running_worker_stops_rather_than_load_an_altered_model(
    serving: Serving, settings: Settings, tmp_path: Path
) -> None:
    site_models.install(settings, published(tmp_path / "made", "3"))
    site_models.activate(settings, "3")
    signature = site_models.own_folder(settings) / "3" / "signature"
    shutil.copy(site_models.own_folder(settings) / "1.2.0" / "signature", signature)
    with pytest.raises(IntegrityError):
        serving.run_once()
