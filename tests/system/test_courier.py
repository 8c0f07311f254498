"""A consortium's NVFlare processes over mutual TLS: frames pass, faults stay where they are, no command is obeyed."""

from __future__ import annotations

import base64
import functools
import json
import operator
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from io import BytesIO
from zipfile import ZipFile

import pytest
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic

from dicom_node.core.errors import Unavailable
from fl_agent.courier import unix
from fl_agent.courier.courier import Handler
from fl_agent.courier.nvflare import local
from tests.bench import courier as bench
from tests.system import hostile_coordinator
from tests.system.hostile_coordinator import HOSPITALS, STOCK
from tests.system.relays import Relays

CANARY = secrets.token_bytes(24)
LONG_S = 30.0


ALL = frozenset(HOSPITALS)


def echoes() -> dict[str, Handler]:
    """Agents that answer with their name and the frame."""
    return {name: functools.partial(operator.add, name.encode()) for name in HOSPITALS}


@pytest.fixture(scope="module")
def running(relays: Relays) -> Iterator[Relays]:
    relays.serve(echoes())
    yield relays
    relays.silence()


@pytest.fixture
def consortium(running: Relays) -> Iterator[Relays]:
    yield running
    running.handlers.update(echoes())


def command(consortium: Relays, site: str, topic: str, body: str | bytes, **headers: object) -> str:
    """What a site says to a command of the hostile coordinator."""
    zipped = isinstance(body, bytes)
    text = base64.b64encode(body).decode() if isinstance(body, bytes) else body
    asked = {"site": site, "topic": topic, "body": text, "zipped": zipped, "headers": headers}
    socket = hostile_coordinator.socket(local.socket(consortium.kits, "coordinator"))
    return unix.ask(socket, json.dumps(asked).encode(), LONG_S).decode()


@pytest.mark.parametrize("size", [0, 15_000, 3_000_000])
def test_frames_pass_both_ways_to_the_bit(consortium: Relays, size: int):
    frame = os.urandom(size)
    assert consortium.exchange(frame) == {name: name.encode() + frame for name in HOSPITALS}


def test_the_coordinators_group_may_ask_its_relay_and_nobody_else(consortium: Relays):
    mode = local.socket(consortium.kits, "coordinator").stat().st_mode
    assert stat.S_IMODE(mode) == 0o660


def test_each_site_gets_its_own_frame_and_strangers_are_left_out(consortium: Relays):
    frames = {"north": b"1", "south": b"2", "nowhere": b"3", "": b"4"}
    assert dict(consortium.courier.exchange(frames, LONG_S)) == {"north": b"north1", "south": b"south2"}


def test_an_agent_with_nothing_to_say_has_answered(consortium: Relays):
    consortium.handlers["east"] = lambda _: b""
    assert consortium.exchange(b"!") == {"north": b"north!", "east": b"", "south": b"south!"}


def test_an_agent_that_fails_is_a_drop_out(consortium: Relays):
    def fail(_: bytes) -> bytes:
        raise ValueError("a fault of the agent")

    consortium.handlers["east"] = fail
    assert set(consortium.exchange(CANARY)) == {"north", "south"}


def test_an_agent_that_is_away_is_a_drop_out_and_may_return(consortium: Relays):
    consortium.agents["east"].close()
    assert set(consortium.exchange(CANARY)) == {"north", "south"}
    assert consortium.courier.connected() == {"north", "south"}
    consortium.agents["east"] = consortium.agent("east")
    assert consortium.courier.connected() == ALL
    assert set(consortium.exchange(CANARY)) == ALL


def test_a_slow_agent_stops_nobody(consortium: Relays):
    waiting = threading.Event()
    consortium.handlers["east"] = lambda _: bytes(waiting.wait(LONG_S))
    first = [site for site, _ in consortium.courier.exchange(dict.fromkeys(HOSPITALS, b""), 1.0)]
    waiting.set()
    assert set(first) == {"north", "south"}


def app(config: dict[str, object], custom: str = "") -> bytes:
    """An NVFlare app as a server deploys it: its client's configuration, and perhaps code of its own."""
    packed = BytesIO()
    with ZipFile(packed, "w") as zipped:
        zipped.writestr("config/config_fed_client.json", json.dumps(config))
        if custom:
            zipped.writestr("custom/brought.py", custom)
    return packed.getvalue()


def executing(path: str, **args: object) -> dict[str, object]:
    executor = {"path": path, "args": args}
    return {"format_version": 2, "executors": [{"tasks": ["*"], "executor": executor}], "components": []}


SUBPROCESS = "nvflare.app_common.launchers.subprocess_launcher.SubprocessLauncher"
NESTED = {"path": "subprocess.Popen", "args": {"args": ["touch", "touched"]}}
APPS = {
    "code of its own": (app(executing("brought.Executor"), "import os\nos.system('touch touched')\n"), {"byoc": True}),
    "code that is not announced": (app(executing("brought.Executor"), "open('touched', 'w')\n"), {}),
    "byoc without code": (app(executing("subprocess.Popen", args=["touch", "touched"])), {"byoc": True}),
    "a subprocess launcher": (app(executing(SUBPROCESS, script="touch touched")), {}),
    "a nested subprocess": (app(executing("nvflare.app_common.executors.Nested", inner=NESTED)), {}),
    "our own relay": (app(executing("fl_agent.courier.nvflare.site.SiteRelay")), {}),
}


def deploy(consortium: Relays, site: str, name: str) -> list[str]:
    """Deploy an app as a job and start it; what the site says to both."""
    body, meta = APPS[name]
    job = secrets.token_hex(8)
    given = {"job_id": job, "job_name": "training", "resource_spec": {}, "min_clients": 1, **meta}
    headers = {RequestHeader.JOB_ID: job, RequestHeader.JOB_META: given, RequestHeader.APP_NAME: "app"}
    topics = {TrainingTopic.DEPLOY: body, TrainingTopic.START_JOB: "{}"}
    return [command(consortium, site, topic, content, **headers) for topic, content in topics.items()]


@pytest.mark.parametrize("name", APPS)
def test_a_hospital_refuses_every_job(consortium: Relays, name: str):
    for site in HOSPITALS:
        assert deploy(consortium, site, name) == ["invalid_request"] * 2
        folder = local.state(consortium.kits, site)
        assert not [path for path in folder.rglob("*") if path.name in ("touched", "brought.py")]
    assert set(consortium.exchange(CANARY)) == ALL


@pytest.mark.parametrize(
    "topic", [SysCommandTopic.SHELL, TrainingTopic.SHUTDOWN, TrainingTopic.RESTART, SysCommandTopic.SYS_INFO]
)
def test_a_hospital_obeys_no_command(consortium: Relays, topic: str):
    assert command(consortium, "north", topic, f"cat {consortium.kits}/north/startup/client.key") == "invalid_request"
    assert set(consortium.exchange(CANARY)) == ALL


def test_without_our_relay_policy_files_alone_keep_code_out_but_not_a_look_at_files_nor_jobs(consortium: Relays):
    key = consortium.kits / STOCK / "startup" / "client.key"
    seen = command(consortium, STOCK, SysCommandTopic.SHELL, "cat startup/client.key")
    assert seen.strip() == key.read_text().strip()
    answers = {name: deploy(consortium, STOCK, name)[0] for name in APPS}
    refused = {name for name, answer in answers.items() if "BYOC not permitted" in answer}
    assert refused == {"code of its own", "code that is not announced"}
    assert {answers[name] for name in APPS if name not in refused} == {"deployed app to stock"}


def test_the_bench_gives_every_figure_that_it_promises(consortium: Relays):
    consortium.handlers.update(dict.fromkeys(HOSPITALS, bytes))
    found = bench.measure(consortium, rounds=3, settled=1, update=100_000)
    sides = {f"courier_{side}_{what}_mb" for side in ("server", "site") for what in ("rss", "growth")}
    assert set(found) == {"courier_round_s", "courier_round_max_s", "courier_update_s", *sides}
    assert 0 < found["courier_round_s"] <= found["courier_round_max_s"]
    assert found["courier_server_rss_mb"] > 10


def test_killed_relays_and_a_killed_server_stop_nobody_for_good(consortium: Relays):
    consortium.kill("north")
    assert set(consortium.exchange(CANARY, timeout_s=2.0)) == {"east", "south"}
    consortium.kill("coordinator")
    with pytest.raises(Unavailable) as caught:
        consortium.exchange(CANARY)
    assert caught.value.code == "courier"
    assert consortium.courier.connected() == frozenset()
    local.start(consortium.kits)
    consortium.wait_for(ALL)
    assert set(consortium.exchange(CANARY)) == ALL


def test_nothing_of_a_frame_is_left_on_any_disk(consortium: Relays):
    assert set(consortium.exchange(CANARY * 1000)) == ALL
    forms = (CANARY, base64.b64encode(CANARY)[:28], CANARY.hex().encode(), repr(CANARY)[2:-1].encode())
    files = [path for path in (consortium.kits / local.STATE).rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "relay.log" and path.stat().st_size]
    assert [path for path in files for form in forms if form in path.read_bytes()] == []
