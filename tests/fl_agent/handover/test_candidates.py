"""A candidate's way into service and back: verified at every step, by decision alone, audited, whole after a crash."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core import audit
from dicom_node.core.database import Database, audit_event
from dicom_node.core.errors import ConfigError, IntegrityError, Refused
from dicom_node.core.settings import Settings
from fl_agent.handover import candidates as room
from fl_agent.handover.candidates import Candidates
from secure_infer import site_models
from secure_infer.models import ModelStore, public_hex
from tests.fl_agent.handover import consortium
from tests.secure_infer.small_model import PUBLISHER_HEX


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return consortium.site(tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with consortium.opened(settings) as found:
        yield found


@pytest.fixture
def candidates(settings: Settings, database: Database) -> Candidates:
    return Candidates(settings, database, clock=lambda: 7.0)


@pytest.fixture
def received(candidates: Candidates, tmp_path: Path) -> Candidates:
    candidates.receive(consortium.publish(tmp_path / "made", "2"))
    return candidates


def trail(database: Database) -> list[tuple[str, str]]:
    with database.read() as connection:
        audit.verify(connection)
        rows = connection.execute(sa.select(audit_event).order_by(audit_event.c.seq)).all()
    return [(row.event_type, row.detail["model"]) for row in rows]


def test_a_candidate_answers_after_acceptance_and_activation_and_one_command_takes_it_back(
    received: Candidates, settings: Settings, database: Database
) -> None:
    assert received.state("2") == "received"
    with pytest.raises(Refused, match="candidates accept 2") as refused:
        received.activate("2")
    assert refused.value.code == "not-accepted"
    received.evaluated("2")
    received.accept("2", "Dr. A")
    assert received.state("2") == "accepted"
    assert site_models.version_in_use(settings) == "1.2.0"
    received.activate("2")
    assert received.state("2") == "active"
    assert site_models.site_card(settings) == received.card("2")
    with pytest.raises(ConfigError, match="active already"):
        received.activate("2")

    assert received.roll_back() == ("2", "1.2.0")
    assert site_models.site_card(settings).version == "1.2.0"
    assert received.state("2") == "received"
    with pytest.raises(ConfigError) as nothing:
        received.roll_back()
    assert nothing.value.code == "nothing-to-roll-back"
    assert trail(database) == [
        ("candidate-received", "2"), ("candidate-evaluated", "2"), ("candidate-accepted", "2"),
        ("model-activated", "2"), ("model-rolled-back", "2"),
    ]  # fmt: skip


def test_rolling_back_goes_to_the_version_before_not_to_the_first(
    received: Candidates, settings: Settings, tmp_path: Path
) -> None:
    received.receive(consortium.publish(tmp_path / "made", "3"))
    for version in ("2", "3"):
        received.accept(version, "policy")
        received.activate(version)
    assert received.roll_back() == ("3", "2")
    assert site_models.version_in_use(settings) == "2"


@pytest.mark.parametrize("name", ["card.json", "signature", "weights.safetensors"])
def test_an_altered_candidate_is_not_received_and_one_altered_later_not_used(
    candidates: Candidates, settings: Settings, tmp_path: Path, name: str
) -> None:
    good = consortium.publish(tmp_path / "made", "2")
    bad = tmp_path / "bad" / "2"
    shutil.copytree(good, bad)

    def alter(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    alter(bad)
    with pytest.raises(IntegrityError):
        candidates.receive(bad)
    assert candidates.versions() == ()
    candidates.receive(good)
    candidates.accept("2", "Dr. A")
    alter(settings.site.state_dir / "candidates" / "2")
    for act in (candidates.card, candidates.weights, candidates.activate):
        with pytest.raises(IntegrityError):
            act("2")
    assert site_models.version_in_use(settings) == "1.2.0"


def test_only_the_pinned_publisher_makes_candidates(database: Database, tmp_path: Path) -> None:
    other = public_hex(Ed25519PrivateKey.generate())
    settings = consortium.site(tmp_path)
    both = settings.inference.model_copy(update={"trusted_publishers": (PUBLISHER_HEX, other)})
    pinned = settings.training.handover.model_copy(update={"publisher": other})
    training = settings.training.model_copy(update={"handover": pinned})
    strict = Candidates(settings.model_copy(update={"inference": both, "training": training}), database)
    with pytest.raises(IntegrityError) as refused:
        strict.receive(consortium.publish(tmp_path / "made", "2"))
    assert refused.value.code == "unknown-publisher"
    with pytest.raises(ConfigError) as nobody:
        Candidates(consortium.site(tmp_path, publisher=""), database)
    assert nobody.value.code == "no-publisher"


def test_a_candidate_that_claims_too_much_privacy_is_refused(candidates: Candidates, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        candidates.receive(consortium.publish(tmp_path / "made", "2", epsilon=0.01))
    assert refused.value.code == "epsilon-understated"
    assert candidates.versions() == ()


def test_an_acceptance_does_not_cover_other_bytes_under_the_same_version(
    received: Candidates, settings: Settings, tmp_path: Path
) -> None:
    received.accept("2", "Dr. A")
    folder = settings.site.state_dir / "candidates" / "2"
    shutil.rmtree(folder)
    shutil.copytree(consortium.publish(tmp_path / "other", "2", slope=-1.0), folder)
    with pytest.raises(Refused) as refused:
        received.activate("2")
    assert refused.value.code == "not-accepted"


def test_another_model_installed_under_the_same_version_stops_the_activation(
    received: Candidates, settings: Settings, tmp_path: Path
) -> None:
    site_models.install(settings, consortium.publish(tmp_path / "other", "2", slope=-1.0))
    received.accept("2", "Dr. A")
    with pytest.raises(IntegrityError, match="another model is installed as 2"):
        received.activate("2")
    assert site_models.version_in_use(settings) == "1.2.0"


def test_a_party_on_this_machine_gets_the_weights(received: Candidates, tmp_path: Path) -> None:
    received.accept("2", "policy")
    received.activate("2", party_models=tmp_path / "party")
    found = ModelStore(tmp_path / "party", [PUBLISHER_HEX]).weights("2")
    assert found.keys() == {"head.weight", "head.bias"}


def test_a_command_that_dies_half_way_is_completed_by_repeating_it(
    received: Candidates, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(place: str) -> None:
        raise KeyboardInterrupt(place)

    received.accept("2", "Dr. A")
    monkeypatch.setattr(room, "reach", die)
    with pytest.raises(KeyboardInterrupt):
        received.activate("2")
    assert site_models.version_in_use(settings) == "1.2.0"
    with pytest.raises(ConfigError):
        received.roll_back()
    monkeypatch.setattr(room, "reach", lambda place: None)
    received.activate("2")
    monkeypatch.setattr(room, "reach", die)
    with pytest.raises(KeyboardInterrupt):
        received.roll_back()
    monkeypatch.setattr(room, "reach", lambda place: None)
    assert received.roll_back() == ("2", "1.2.0")
    assert [what for what, _ in trail(database)][2:] == ["model-activated"] * 2 + ["model-rolled-back"] * 2


def test_a_pinned_model_in_the_settings_is_named(database: Database, tmp_path: Path) -> None:
    settings = consortium.site(tmp_path)
    pinned = settings.model_copy(update={"inference": settings.inference.model_copy(update={"model": "1.2.0"})})
    found = Candidates(pinned, database)
    found.receive(consortium.publish(tmp_path / "made", "2"))
    found.accept("2", "policy")
    for act in (lambda: found.activate("2"), found.roll_back):
        with pytest.raises(ConfigError) as refused:
            act()
        assert refused.value.code == "model-pinned"
