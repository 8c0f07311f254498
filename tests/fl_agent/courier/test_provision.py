"""Start-up kits: our policies alone, keys for their owner alone, and nothing that lets one pose as another."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from pydantic import ValidationError

from dicom_node.core.errors import ConfigError
from dicom_node.core.settings import read
from dicom_node.core.training_settings import FederationSettings
from fl_agent.courier.nvflare import policy
from fl_agent.courier.nvflare.consortium import ConsortiumSettings
from fl_agent.courier.nvflare.provision import provision
from fl_agent.courier.nvflare.run import command

HOSPITALS = ("north", "east-clinic", "south")
KITS = ("coordinator", *HOSPITALS)


def settings(hospitals: tuple[str, ...] = HOSPITALS) -> ConsortiumSettings:
    return ConsortiumSettings(name="lungs", host="coordinator.example.org", port=8443, hospitals=hospitals)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provisioned")
    assert provision(settings(), folder) == list(KITS)
    return folder


def content(kits: Path, name: str, file: str) -> dict[str, object]:
    return json.loads((kits / name / file).read_text())


def certificate(kits: Path, name: str) -> x509.Certificate:
    side = "server" if name == "coordinator" else "client"
    return x509.load_pem_x509_certificate((kits / name / "startup" / f"{side}.crt").read_bytes())


@pytest.mark.parametrize("name", HOSPITALS)
def test_a_hospital_runs_our_relay_and_nothing_else(kits: Path, name: str):
    resources = content(kits, name, "local/resources.json")
    assert resources["components"] == [{"id": "relay", "path": policy.SITE_RELAY, "args": {}}]
    assert resources["class_allow_list"] == [policy.SITE_RELAY]
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["allow_log_streaming"] is False


@pytest.mark.parametrize("name", KITS)
def test_nobody_has_any_right(kits: Path, name: str):
    permissions = content(kits, name, "local/authorization.json")["permissions"]
    assert {right for rights in permissions.values() for right in rights.values()} == {"none"}
    assert all({"byoc", "operate", "shell_commands", "submit_job"} <= set(rights) for rights in permissions.values())


@pytest.mark.parametrize("name", KITS)
def test_a_kit_holds_no_default_that_could_step_in_and_no_script(kits: Path, name: str):
    files = {path.name for path in (kits / name).rglob("*") if path.is_file()}
    assert not [file for file in files if file.endswith((".default", ".sh", ".sample"))]
    assert {"resources.json", "authorization.json", "comm_config.json", "log_config.json", "rootCA.pem"} <= files


@pytest.mark.parametrize("name", KITS)
def test_a_kit_is_for_its_owner_alone(kits: Path, name: str):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (kits / name, *(kits / name).rglob("*"))}
    assert modes == {0o700, 0o600}


@pytest.mark.parametrize("name", KITS)
def test_connections_are_mutually_authenticated_to_the_named_host(kits: Path, name: str):
    role = "server" if name == "coordinator" else "client"
    started = content(kits, name, f"startup/fed_{role}.json")
    side = started["client"] if role == "client" else started["servers"][0]
    assert side["connection_security"] == "mtls"
    assert started["servers"][0]["service"]["target"] == "coordinator.example.org:8443"
    assert started["require_signed_jobs"] is True


def test_each_certificate_names_its_owner(kits: Path):
    owners = [
        certificate(kits, name).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value for name in KITS
    ]
    assert owners == ["coordinator.example.org", *HOSPITALS]


def test_the_authority_keeps_no_key_but_its_own(kits: Path):
    kept = [path for path in (kits / "authority").rglob("*") if path.is_file()]
    assert len(kept) == 1
    assert set(json.loads(kept[0].read_text())) == {"root_cert", "root_pri_key"}
    assert stat.S_IMODE(kept[0].stat().st_mode) == 0o600
    assert stat.S_IMODE((kits / "authority").stat().st_mode) == 0o700


def test_a_later_run_adds_what_is_missing_with_new_keys_of_the_same_authority(tmp_path: Path):
    provision(settings(), tmp_path)
    before = {name: certificate(tmp_path, name) for name in KITS}
    for path in sorted((tmp_path / "south").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "south").rmdir()
    assert provision(settings((*HOSPITALS, "west")), tmp_path) == ["south", "west"]
    assert all(certificate(tmp_path, name) == before[name] for name in KITS[:-1])
    assert certificate(tmp_path, "south").public_key() != before["south"].public_key()
    roots = {(tmp_path / name / "startup" / "rootCA.pem").read_bytes() for name in (*KITS, "west")}
    assert len(roots) == 1


@pytest.mark.parametrize(
    ("host", "hospitals"),
    [
        ("localhost", ("a", "b")),
        ("localhost", ("a", "b", "a")),
        ("localhost", ("a", "b", "coordinator")),
        ("localhost", ("a", "b", "C")),
        ("localhost", ("a", "b", "../c")),
        ("no host", ("a", "b", "c")),
    ],
)
def test_names_that_cannot_be_told_apart_or_are_none_are_refused(tmp_path: Path, host: str, hospitals: tuple[str, ...]):
    file = tmp_path / "consortium.toml"
    file.write_text(f"name = 'lungs'\nhost = '{host}'\nhospitals = {json.dumps(hospitals)}\n")
    with pytest.raises(ConfigError):
        read(file, ConsortiumSettings)


def test_a_folder_that_is_no_kit_is_named(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        command(tmp_path, tmp_path / "state")
    assert caught.value.code == "no-kit"


@pytest.mark.parametrize("name", HOSPITALS)
def test_a_hospitals_settings_want_the_keys_of_all_others_and_come_with_none(kits: Path, name: str):
    text = (kits / name / "federation.toml").read_text()
    section = tomllib.loads(text)["training"]["federation"]
    assert section["roster"] == [""] * (len(HOSPITALS) - 1)
    assert {other for other in HOSPITALS if f"# {other}\n" in text} == set(HOSPITALS) - {name}
    with pytest.raises(ValidationError):
        FederationSettings.model_validate(section)
    filled = {**section, "coordinator": "0" * 64, "roster": ["1" * 64, "2" * 64]}
    assert FederationSettings.model_validate(filled).minimum_cohort == len(HOSPITALS)


def test_the_coordinators_settings_want_the_keys_of_all_hospitals_and_come_with_none(kits: Path):
    listed = tomllib.loads((kits / "coordinator" / "members.toml").read_text())["members"]
    assert [(one["name"], one["identity"]) for one in listed] == [(name, "") for name in HOSPITALS]
