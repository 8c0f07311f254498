"""Nothing altered, unsigned or misplaced leaves the model store."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

import secure_infer.__main__ as program
from dicom_node.core.errors import ConfigError, IntegrityError
from secure_infer.card import Bound, Distributed, Mechanism, ModelCard
from secure_infer.models import SHIPPED, ModelStore, encode_weights, public_hex, shipped_publisher, signing_key
from secure_infer.public import public_part
from secure_infer.trunks import LITE0
from tests.secure_infer.small_model import PUBLISHER, PUBLISHER_HEX, card_of, head, publish, weights_of

MADE = head(6, 3)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    publish(tmp_path, MADE)
    return ModelStore(tmp_path, [PUBLISHER_HEX])


def sign(folder: Path, card: bytes, key: Ed25519PrivateKey = PUBLISHER) -> None:
    (folder / "card.json").write_bytes(card)
    signature = key.sign(b"VeilRay model card 1\n" + card).hex()
    (folder / "signature").write_text(f"{public_hex(key)}\n{signature}\n")


def test_what_was_published_is_read_back(store: ModelStore) -> None:
    expected = weights_of(MADE)
    assert store.versions() == ("1",)
    assert store.card("1").suffix == MADE
    found = store.weights("1")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == np.float64
        np.testing.assert_array_equal(tensor, expected[name])


@pytest.mark.parametrize("name", ["card.json", "signature", "weights.safetensors"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_is_refused(tmp_path: Path, name: str, where: float, flip: int) -> None:
    root = tmp_path / os.urandom(4).hex()
    publish(root, MADE)
    path = root / "1" / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= flip
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        ModelStore(root, [PUBLISHER_HEX]).verify("1")


@pytest.mark.parametrize("name", ["card.json", "signature", "weights.safetensors"])
@pytest.mark.parametrize("change", ["truncate", "append", "empty"])
def test_a_longer_or_shorter_file_is_refused(store: ModelStore, tmp_path: Path, name: str, change: str) -> None:
    path = tmp_path / "1" / name
    data = path.read_bytes()
    path.write_bytes({"truncate": data[:-1], "append": data + b"\n", "empty": b""}[change])
    with pytest.raises(IntegrityError):
        store.verify("1")


def test_a_publisher_that_nobody_trusts_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, MADE)
    with pytest.raises(IntegrityError, match="trusted_publishers"):
        ModelStore(tmp_path).verify("1")
    with pytest.raises(IntegrityError, match="trusted_publishers"):
        ModelStore(tmp_path, [PUBLISHER_HEX]).verify("1", trusted=["0" * 64])


def test_a_trusted_name_over_another_keys_signature_is_refused(store: ModelStore, tmp_path: Path) -> None:
    card = (tmp_path / "1" / "card.json").read_bytes()
    sign(tmp_path / "1", card, Ed25519PrivateKey.generate())
    lines = (tmp_path / "1" / "signature").read_text().splitlines()
    (tmp_path / "1" / "signature").write_text(f"{PUBLISHER_HEX}\n{lines[1]}\n")
    with pytest.raises(IntegrityError, match="altered"):
        store.verify("1")


def test_a_signature_without_the_cards_domain_is_refused(store: ModelStore, tmp_path: Path) -> None:
    card = (tmp_path / "1" / "card.json").read_bytes()
    (tmp_path / "1" / "signature").write_text(f"{PUBLISHER_HEX}\n{PUBLISHER.sign(card).hex()}\n")
    with pytest.raises(IntegrityError, match="altered"):
        store.verify("1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"comment": "one more key"}, "form"),
        ({"classes": ["normal", "viral", "bacterial"]}, "form"),
        ({"version": "2"}, "of version 2"),
        ({"version": "../1"}, "form"),
        ({"weights_sha256": "0" * 64}, "not those of its card"),
    ],
)
def test_even_a_signed_card_must_be_of_the_known_form(
    store: ModelStore, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    card = json.loads((tmp_path / "1" / "card.json").read_bytes()) | change
    sign(tmp_path / "1", (json.dumps(card, sort_keys=True, indent=2) + "\n").encode())
    with pytest.raises(IntegrityError, match=reason):
        store.verify("1")


def test_a_signed_card_in_another_spelling_is_refused(store: ModelStore, tmp_path: Path) -> None:
    card = json.loads((tmp_path / "1" / "card.json").read_bytes())
    sign(tmp_path / "1", json.dumps(card).encode())
    with pytest.raises(IntegrityError, match="canonical"):
        store.verify("1")


def test_weights_that_do_not_fit_the_card_are_not_published(tmp_path: Path) -> None:
    weights = weights_of(MADE)
    encoded = encode_weights({**weights, "head.bias": np.zeros(4)})
    with pytest.raises(IntegrityError, match="fit"):
        ModelStore(tmp_path).publish(card_of(MADE, encoded), encoded, PUBLISHER)
    encoded = encode_weights({**weights, "head.bias": np.full(3, np.nan)})
    with pytest.raises(IntegrityError, match="fit"):
        ModelStore(tmp_path).publish(card_of(MADE, encoded), encoded, PUBLISHER)
    assert ModelStore(tmp_path).versions() == ()


SUMMED = {
    "name": "head", "kind": "distributed discrete Gaussian", "sampling_rate": 0.1, "steps": 100, "variance": 10**6,
    "honest": 3, "dimension": 40, "sensitivity_squared": 10**6,
}  # fmt: skip


def federated(root: Path, *mechanisms: dict[str, object], **privacy: object) -> ModelStore:
    encoded = encode_weights(weights_of(MADE))
    written = card_of(MADE, encoded).model_dump(mode="json")
    written["privacy"] |= {"mechanisms": [*written["privacy"]["mechanisms"], *mechanisms], **privacy}
    store = ModelStore(root, [PUBLISHER_HEX])
    store.publish(ModelCard.model_validate(written), encoded, PUBLISHER)
    return store


@pytest.mark.parametrize(("cut", "side"), [(None, 128), ("block3", 288), ("block3", 128)])
def test_a_card_whose_public_part_takes_no_such_image_is_none(cut: str | None, side: int) -> None:
    written = card_of(MADE, b"").model_dump(mode="json")
    written["preprocessing"]["side"] = 288
    assert ModelCard.model_validate(written).preprocessing.side == 288
    written["preprocessing"]["side"] = side
    if cut is not None:
        written["trunk"] = {"name": "efficientnet-lite0", "sha256": "0" * 64, "cut": cut, "source": "none"}
    with pytest.raises(ValidationError, match=f"takes no images of {side} x {side}"):
        ModelCard.model_validate(written)


def test_a_card_from_before_there_were_regions_means_the_whole_image() -> None:
    written = card_of(MADE, b"")
    assert b"regions" not in written.canonical()
    taps = {"taps": ("block7",), "sha256": LITE0.sha256}
    old = written.model_copy(update={"trunk": written.trunk.model_copy(update=taps)})
    parted = old.model_copy(update={"trunk": old.trunk.model_copy(update={"regions": 2})})
    assert (public_part(old).setup.regions, public_part(parted).setup.regions) == (1, 2)
    assert b'"regions": 2' in parted.canonical()


def test_the_card_of_many_hospitals_tells_their_summed_noise_and_both_epsilons(tmp_path: Path) -> None:
    bound = {"name": "mean", "kind": "bound", "epsilon": 0.1, "delta": 0.0, "steps": 1}
    found = federated(tmp_path, SUMMED, bound, epsilon_alone=2.5).card("1").privacy
    assert [type(one) for one in found.mechanisms] == [Mechanism, Distributed, Bound]
    assert (found.epsilon, found.epsilon_alone) == (1, 2.5)
    assert '"honest": 3' in (tmp_path / "1" / "card.json").read_text()


def test_a_card_tells_no_hospitals_number_of_patients_and_no_impossible_epsilon(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="does not belong into a card"):
        federated(tmp_path, {**SUMMED, "patients": 412})
    with pytest.raises(ValidationError, match="cannot hide more"):
        federated(tmp_path, SUMMED, epsilon_alone=0.5)
    with pytest.raises(ValidationError, match="kind"):
        federated(tmp_path, {**SUMMED, "kind": "trust us"})


def test_a_version_never_changes(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="never changes"):
        publish(tmp_path, MADE, seed=2)
    assert store.verify("1")


def test_a_hospital_installs_the_card_without_the_weights(store: ModelStore, tmp_path: Path) -> None:
    hospital = ModelStore(tmp_path / "hospital", [PUBLISHER_HEX])
    assert hospital.install(tmp_path / "1") == store.card("1")
    assert sorted(path.name for path in (tmp_path / "hospital" / "1").iterdir()) == ["card.json", "signature"]
    with pytest.raises(ConfigError, match="no weights here"):
        hospital.weights("1")


def test_an_owner_installs_the_weights_too_and_an_altered_folder_is_not_installed(tmp_path: Path) -> None:
    publish(tmp_path, MADE)
    owner = ModelStore(tmp_path / "owner", [PUBLISHER_HEX])
    (tmp_path / "1" / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError):
        owner.install(tmp_path / "1", with_weights=True)
    shutil.rmtree(tmp_path / "1")
    publish(tmp_path, MADE)
    owner.install(tmp_path / "1", with_weights=True)
    assert owner.weights("1").keys() == weights_of(MADE).keys()


def test_the_active_version_is_the_activated_one_or_the_only_one(store: ModelStore, tmp_path: Path) -> None:
    assert store.active() == "1"
    for version in ("1.10", "1.9"):
        publish(tmp_path, MADE, version=version)
    assert store.versions() == ("1", "1.9", "1.10")
    with pytest.raises(ConfigError, match="none is activated"):
        store.active()
    store.activate("1.9")
    assert ModelStore(tmp_path).active() == "1.9"
    (tmp_path / "1" / "card.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        store.activate("1")
    assert store.active() == "1.9"


@pytest.mark.parametrize("version", ["2", "..", "../store", "", "1/../1"])
def test_an_unknown_version_is_refused(store: ModelStore, version: str) -> None:
    with pytest.raises(ConfigError, match="not installed"):
        store.verify(version)


def test_a_signing_key_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot make the key .*: No such file or directory"):
        signing_key(tmp_path / "absent" / "key.pem")


def test_a_signing_key_is_made_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    made = signing_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert public_hex(signing_key(tmp_path / "key.pem")) == public_hex(made)
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        signing_key(tmp_path / "key.pem")
    (tmp_path / "junk.pem").write_text("no key")
    (tmp_path / "junk.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="PEM"):
        signing_key(tmp_path / "junk.pem")


def test_the_shipped_model_verifies_and_its_key_is_the_programs_own() -> None:
    shipped = ModelStore(SHIPPED)
    card = shipped.verify(shipped.active(), trusted=[shipped_publisher()])
    assert shipped.weights(card.version)["head.weight"].shape == (3, card.suffix.input_shape[0], 1, 1)


def test_no_private_key_lies_beside_the_shipped_model() -> None:
    for path in SHIPPED.rglob("*"):
        assert path.is_dir() or b"PRIVATE" not in path.read_bytes()
        assert path.name in {"publisher", "card.json", "signature", "weights.safetensors"} or path.is_dir()


def test_the_list_of_models_shows_what_was_not_measured_and_who_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    publish(tmp_path, MADE, version="2")
    monkeypatch.setattr(program, "out", Console(width=160))
    for key, said in ((PUBLISHER_HEX, "not measured"), ("0" * 64, "unknown-publisher")):
        monkeypatch.setattr(program, "_store", lambda *_, trusted=key: ModelStore(tmp_path, [trusted]))
        with program.out.capture() as shown:
            program.list_models()
        assert said in shown.get()
        assert "0.953" in shown.get()
