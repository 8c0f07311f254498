"""What an administrator copies from `orthanc_config` works with this version of the program."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dicom_node.__main__ import app as dicom_node
from dicom_node.core import settings
from dicom_node.core.pki import Authority
from fl_agent.__main__ import app as fl_agent
from fl_agent.coordinator.settings import CoordinatorSettings
from fl_agent.courier.nvflare import roster
from fl_agent.courier.nvflare.consortium import ConsortiumSettings
from secure_infer.__main__ import app as secure_infer
from secure_infer.dealer import DealerSettings
from secure_infer.party import PartySettings

CONFIG = Path(__file__).resolve().parent.parent / "orthanc_config"
EXAMPLES = {
    "site.example.toml": settings.Settings,
    "coordinator.example.toml": CoordinatorSettings,
    "party.example.toml": PartySettings,
    "dealer.example.toml": DealerSettings,
    "consortium.example.toml": ConsortiumSettings,
}
UNITS = sorted((CONFIG / "systemd").glob("*.service"))
COMMANDS = {
    "dicom-node": {command.callback.__name__ for command in dicom_node.registered_commands},
    "secure-infer": {command.callback.__name__ for command in secure_infer.registered_commands},
    "fl-agent": {command.callback.__name__ for command in fl_agent.registered_commands},
}


def section(field: FieldInfo) -> type[BaseModel] | None:
    """The model behind a field that is a table of its own, also an optional one or one of several."""
    kinds = [field.annotation, *typing.get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def described(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every plain setting of a model and of the tables below it."""
    for name, field in model.model_fields.items():
        below = section(field)
        if below is None:
            yield (*path, name), field
        else:
            yield from described(below, (*path, name))


def everything(text: str) -> dict[str, Any]:
    """An example with every default and optional setting switched on."""
    return tomllib.loads(re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE))


def look_up(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = (tree[0] if isinstance(tree, list) else tree)[name]
    return tree


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_valid_settings_file(name: str) -> None:
    model = EXAMPLES[name]
    assert isinstance(settings.read(CONFIG / name, model), model)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_with_everything_switched_on_is_valid_too(name: str) -> None:
    EXAMPLES[name].model_validate(everything((CONFIG / name).read_text()))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_names_and_describes_every_setting(name: str) -> None:
    text = (CONFIG / name).read_text()
    tree = everything(text)
    absent = []
    for path, field in described(EXAMPLES[name]):
        line = re.compile(rf"^# {re.escape(str(field.description))}\n#?{path[-1]} = ", re.MULTILINE)
        if not line.search(text):
            absent.append(".".join(path))
        look_up(tree, path)  # raises where the setting stands in another table
    assert absent == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_an_example_shows_as_default_is_the_default(name: str) -> None:
    text = (CONFIG / name).read_text()
    chosen, shown = tomllib.loads(text), everything(text)
    for path, field in described(EXAMPLES[name]):
        try:
            look_up(chosen, path)
        except KeyError:
            if field.default not in (None, PydanticUndefined):
                value = look_up(shown, path)
                assert (tuple(value) if isinstance(value, list) else value) == field.default, ".".join(path)


def parse(unit: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str
    parsed.read(unit)
    return parsed


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_exists_and_is_hardened(unit: Path) -> None:
    service = parse(unit)["Service"]
    program, command, *options = shlex.split(service["ExecStart"])
    assert command in COMMANDS[Path(program).name]
    assert unit.name == f"veilray-{command}.service"
    for option in options:
        if option.endswith(".toml"):
            assert f"{Path(option).stem}.example.toml" in EXAMPLES
    assert service["User"] != "root"
    assert (CONFIG / "systemd" / "veilray-.service.d" / "hardening.conf").is_file()  # by its name it covers this unit


def test_the_inference_worker_cannot_listen() -> None:
    assert parse(CONFIG / "systemd" / "veilray-worker.service")["Service"]["SocketBindDeny"] == "any"


def test_the_relay_is_a_user_of_its_own_and_whatever_it_starts_ends_with_it() -> None:
    units = {unit.stem: parse(unit)["Service"] for unit in UNITS}
    relay = units.pop("veilray-relay")
    assert relay["User"] not in {service["User"] for service in units.values()}
    assert relay["KillMode"] == "control-group"
    assert "-/var/lib/veilray" in relay["InaccessiblePaths"].split()


def test_the_coordinators_relay_serves_the_group_that_its_unit_names() -> None:
    (path,) = (CONFIG / "coordinator").rglob("*.conf")
    assert (CONFIG / "systemd" / path.parent.name.removesuffix(".d")).is_file()
    changed = parse(path)["Service"]
    options = shlex.split(changed["ExecStart"])
    assert options[1] == "relay"
    coordinator = parse(CONFIG / "systemd" / "veilray-coordinator.service")["Service"]["User"]
    assert options[options.index("--group") + 1] == changed["SupplementaryGroups"] == coordinator
    assert options[options.index("--socket") + 1] == str(roster.COURIER_SOCKET)


def test_the_agents_socket_is_where_relay_unit_and_kit_look_for_it() -> None:
    options = shlex.split(parse(CONFIG / "systemd" / "veilray-relay.service")["Service"]["ExecStart"])
    assert options[options.index("--socket") + 1] == str(roster.AGENT_SOCKET)
    agent = parse(CONFIG / "systemd" / "veilray-run.service")["Service"]
    assert roster.AGENT_SOCKET.parent.name == agent["RuntimeDirectory"]


def test_a_key_that_a_service_makes_lies_where_it_may_write() -> None:
    coordinator = tomllib.loads((CONFIG / "coordinator.example.toml").read_text())
    state = Path(coordinator["state_dir"])
    assert {Path(coordinator[name]).parent for name in ("key_file", "publisher_key_file")} == {state}
    site = everything((CONFIG / "site.example.toml").read_text())
    assert Path(site["training"]["federation"]["identity_file"]) == roster.IDENTITY
    assert roster.IDENTITY.parent == Path(site["site"]["state_dir"])


def test_systemd_makes_the_user_of_every_unit(tmp_path: Path) -> None:
    tool = shutil.which("systemd-sysusers")
    assert tool is not None, "systemd-sysusers is not installed: apt-get install systemd"
    (tmp_path / "etc").mkdir()
    made = subprocess.run(
        [tool, f"--root={tmp_path}", str(CONFIG / "veilray.sysusers")], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    users = {line.partition(":")[0] for line in (tmp_path / "etc" / "passwd").read_text().splitlines()}
    assert {parse(unit)["Service"]["User"] for unit in UNITS} == users


def test_systemd_rates_every_unit_as_hardened(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    assert tool is not None, "systemd-analyze is not installed: apt-get install systemd"
    hardening = (CONFIG / "systemd" / "veilray-.service.d" / "hardening.conf").read_text()
    for unit in UNITS:
        whole = tmp_path / unit.name
        whole.write_text(unit.read_text() + hardening)
        arguments = [tool, "security", "--offline=true", "--threshold=20", str(whole)]
        rated = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert rated.returncode == 0, rated.stdout[-400:] + rated.stderr


def test_services_do_not_restart_on_faults_that_only_a_person_can_mend() -> None:
    text = (CONFIG / "systemd" / "veilray-.service.d" / "hardening.conf").read_text()
    from dicom_node.core.errors import ConfigError, IntegrityError

    line = f"RestartPreventExitStatus={IntegrityError.exit_status} {ConfigError.exit_status}"
    assert line in text


def test_nginx_takes_the_example_and_the_pages_take_its_host_name(tmp_path: Path) -> None:
    from dicom_node.web.security import allowed_hosts

    tool = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert tool is not None, "nginx is not installed: apt-get install nginx-light"
    text = (CONFIG / "nginx.example.conf").read_text()
    (host,) = re.findall(r"proxy_set_header Host (\S+);", text)
    assert host in allowed_hosts(settings.WebSettings())
    assert f"127.0.0.1:{settings.WebSettings().port}" in text
    issued = Authority(tmp_path).issue("web")
    for name, path in (("web.pem", issued.certificate), ("web.key", issued.key), ("administrators-ca.pem", issued.ca)):
        text = text.replace(f"/etc/veilray/tls/{name}", str(path))
    whole = tmp_path / "nginx.conf"
    whole.write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ client_body_temp_path {tmp_path}/b; "
        f"proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; "
        f"scgi_temp_path {tmp_path}/s; {text} }}"
    )
    checked = subprocess.run([tool, "-t", "-c", str(whole)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_containers_run_commands_that_exist() -> None:
    text = (CONFIG / "compose" / "compose.yaml").read_text()
    commands = re.findall(r'command: \["([\w-]+)", "([\w-]+)"\]', text)
    assert len(commands) == 3
    assert all(command in COMMANDS[program] for program, command in commands)
