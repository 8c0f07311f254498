"""Three uneven hospitals, their coordinator and NVFlare, each a process: from films to a report by what they trained.

On the way no single update is in the open.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from dicom_node.demo.pacs import OwnPacs
from dicom_node.demo.stack import Stack
from dicom_node.launch import Service
from fl_agent.courier.nvflare import local
from fl_agent.head import VIEWS, default_trunk
from fl_agent.learning.site import Examples
from fl_agent.runreport import record
from fl_agent.trainset import pooled_features, read_manifest
from secure_infer.models import SHIPPED, ModelStore, public_hex, signing_key
from tests.conftest import DATA
from tests.system.hospital_agent import canary, drawn
from tests.system.relays import Relays
from tests.system.sites import command, names, report

#: Patients of each.
HOSPITALS = {"north": 20, "east": 35, "south": 60}
VERSION = "2.0.0"
ROUNDS = 4
#: After how many sums memory is looked at.
LOOKED = 3
#: Memory that a process may write to and has written to (proc(5), smaps).
MAPPED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.*\n(?:(?!Rss:).*\n)*?Rss: +[1-9]", re.MULTILINE)


def rows() -> dict[str, Examples]:
    """Patients of kermany224 that the hospitals share out, or drawn ones where it is not at hand."""
    trunk, folder = default_trunk(), DATA / "kermany224"
    if not (folder / "manifest.csv").is_file():
        return {name: drawn(count, trunk.channels, count) for name, count in HOSPITALS.items()}
    films = read_manifest(folder, "train")
    order = np.random.default_rng(3).permutation(films.count)
    found, ends = {}, np.cumsum(list(HOSPITALS.values()))
    for name, chosen in zip(HOSPITALS, np.split(order, ends)[:-1], strict=True):
        one = films.take(np.isin(films.patients, chosen))
        with TemporaryDirectory() as cache:
            features = pooled_features(folder, one, trunk, Path(cache), lambda *_: None, VIEWS)
        found[name] = Examples(features, one.labels, one.patients)
    return found


class Federation:
    """All processes and their folders; agents and coordinator as a site would start them."""

    def __init__(self, folder: Path, relays: Relays) -> None:
        self.folder, self.relays = folder, relays
        self.keys = {name: folder / name / "identity.pem" for name in HOSPITALS}
        self.coordinator_folder = folder / "coordinator"
        for name in (*HOSPITALS, "coordinator"):
            (folder / name).mkdir()
        coordinator = public_hex(signing_key(self.coordinator_folder / "coordinator.pem"))
        identities = {name: public_hex(signing_key(file)) for name, file in self.keys.items()}
        self.publisher = public_hex(signing_key(self.coordinator_folder / "publisher.pem"))
        for name, one in rows().items():
            np.savez(folder / name / "rows.npz", features=one.features, labels=one.labels, patients=one.patients)
        self.agents = {name: self._agent(name, coordinator, list(identities.values())) for name in HOSPITALS}
        settings = self.coordinator_folder / "coordinator.toml"
        settings.write_text(self._settings(identities))
        command = [sys.executable, "-m", "fl_agent", "coordinator", "--config", str(settings)]
        self.coordinator = Service("coordinator", command, self.coordinator_folder)

    def _agent(self, name: str, coordinator: str, roster: list[str]) -> Service:
        rules = {
            "identity_file": str(self.keys[name]), "coordinator": coordinator, "roster": roster, "minimum_cohort": 3,
            "minimum_patients": 1,
        }  # fmt: skip
        given = {
            "folder": str(self.folder / name),
            "federation": rules,
            "rows": str(self.folder / name / "rows.npz"),
            "socket": str(local.socket(self.relays.kits, name)),
        }
        file = self.folder / name / "agent.json"
        file.write_text(json.dumps(given))
        return Service(name, [sys.executable, "-m", "tests.system.hospital_agent", str(file)], self.folder / name)

    def _settings(self, identities: dict[str, str]) -> str:
        members = [
            f'[[members]]\nname = "{name}"\nidentity = "{identity}"\npatients = {HOSPITALS[name]}\n'
            for name, identity in identities.items()
        ]
        folder, socket = self.coordinator_folder, local.socket(self.relays.kits, "coordinator")
        return "\n".join(
            [
                f'state_dir = "{folder}"',
                f'key_file = "{folder / "coordinator.pem"}"',
                f'publisher_key_file = "{folder / "publisher.pem"}"',
                *members,
                "[population]\nmin_age_years = 1\nmax_age_years = 5",
                f'[run]\nversion = "{VERSION}"\ndelta = 1e-3\nrounds = {ROUNDS}\nspare = 4',
                f'[courier]\nsocket = "{socket}"',
                "[timing]\nstage_s = 10.0\ncontribution_s = 20.0\njoining_s = 60.0",
            ]
        )

    def rounds(self) -> int:
        """How many sums the coordinator has recorded."""
        found = list((self.coordinator_folder / "runs").glob(f"*/{record.FILE}"))
        return sum('"loss"' in line for line in found[0].read_text().splitlines()) if found else 0


def forms(name: str) -> list[bytes]:
    """How a program could hold a hospital's canary."""
    return [canary(name).astype(kind).tobytes() for kind in ("<i4", "<f4", "<f8")]


def written(piece: bytes) -> bytes:
    """Leave out pages that hold nothing."""
    pages = np.frombuffer(piece, np.uint8).reshape(-1, 4096)
    return pages[pages.any(axis=1)].tobytes()


@dataclass(frozen=True)
class Memory:
    """A process's memory at one moment."""

    pieces: tuple[bytes, ...]

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Stop a process, read all that it can write to, and let it go on."""
        pieces = []
        os.kill(pid, signal.SIGSTOP)
        try:
            with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
                for found in MAPPED.finditer(Path(f"/proc/{pid}/smaps").read_text()):
                    start, end = (int(one, 16) for one in found.groups())
                    with contextlib.suppress(OSError):  # memory of a device
                        memory.seek(start)
                        pieces.append(written(memory.read(end - start)))
        finally:
            os.kill(pid, signal.SIGCONT)
        return cls(tuple(pieces))

    def __contains__(self, wanted: bytes) -> bool:
        return any(wanted in piece for piece in self.pieces)


@pytest.fixture(scope="module")
def federation(relays: Relays) -> Iterator[Federation]:
    with TemporaryDirectory() as folder:
        one = Federation(Path(folder), relays)
        try:
            for agent in one.agents.values():
                agent.start()
            relays.wait_for(frozenset(HOSPITALS))
            one.coordinator.start()
            yield one
        finally:
            for service in (*one.agents.values(), one.coordinator):
                service.kill()


@pytest.fixture(scope="module")
def snapshots(federation: Federation) -> dict[str, Memory]:
    """Memory of coordinator and server in the middle of the run, which is over when this returns."""
    service, snapshots = federation.coordinator, dict[str, Memory]()
    deadline = time.monotonic() + 120
    while service.alive:
        assert time.monotonic() < deadline, service.log_path.read_text()[-2000:]
        if not snapshots and federation.rounds() >= LOOKED:
            pids = {"coordinator": service.pid, "relay": federation.relays.pid("coordinator")}
            snapshots = {name: Memory.of(pid) for name, pid in pids.items()}
        time.sleep(0.02)
    assert service.stop() == 0, service.log_path.read_text()[-2000:]
    return snapshots


def test_a_run_comes_to_a_signed_candidate_and_no_single_update_to_the_coordinator(
    federation: Federation, snapshots: dict[str, Memory]
):
    store = ModelStore(federation.coordinator_folder / "models", [federation.publisher])
    assert store.card(VERSION).privacy.epsilon <= 3.0
    weights = store.weights(VERSION)["head.weight"]
    assert np.isfinite(weights).all()
    assert weights.any()

    folders = (federation.coordinator_folder, federation.relays.kits)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    kept = Memory(tuple(path.read_bytes() for path in files))
    # The search finds what is there: a canary at home, the public keys at the coordinator, the weights on its disk.
    assert forms("south")[0] in Memory.of(federation.agents["south"].pid)
    keys = [public_hex(signing_key(key)).encode() for key in federation.keys.values()]
    assert all(key in snapshots["coordinator"] for key in keys)
    assert weights.astype("<f4").tobytes()[:64] in kept
    for where in (kept, *snapshots.values()):
        assert [name for name in HOSPITALS for form in forms(name) if form in where] == []


@pytest.mark.usefixtures("snapshots")
def test_the_candidate_goes_live_at_a_site_and_the_next_report_names_it(federation: Federation, tmp_path: Path):
    made = ModelStore(federation.coordinator_folder / "models", [federation.publisher])
    shutil.copytree(SHIPPED, tmp_path / "owner")
    shipped = ModelStore(tmp_path / "owner")
    old, new = shipped.card(shipped.active()), made.card(VERSION)
    with Stack(tmp_path, quiet_s=0.3, models=tmp_path / "owner", publishers=[federation.publisher]) as stack:
        hospital = ModelStore(tmp_path / "state" / "models")
        hospital.install(tmp_path / "owner" / old.version)
        hospital.activate(old.version)
        pacs = OwnPacs(tmp_path / "pacs", stack.own_pacs_port, (stack.ae_title,))
        stack.start(pacs_port=pacs.dicom_port)
        with (stack.folder / "site.toml").open("a") as file:
            file.write(f'\n[training.handover]\npublisher = "{federation.publisher}"\n')
        assert names(old, report(stack, pacs, 1))
        command(stack, "receive", str(federation.coordinator_folder / "models" / VERSION))
        command(stack, "accept", VERSION, "--operator", "Dr. A")
        command(stack, "activate", VERSION, "--party-models", str(tmp_path / "owner"))
        after = report(stack, pacs, 2)
        assert names(new, after)
        assert old.weights_sha256 not in after
        pacs.close()
