"""Real servers that system tests share."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fl_agent.courier.nvflare.wire import GROUP
from tests.system import hostile_coordinator, impatient
from tests.system.orthanc_server import OrthancServer
from tests.system.relays import Relays

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def orthanc() -> Iterator[OrthancServer]:
    """One Orthanc with DICOMweb for the session; call `clear` first where what others stored would matter."""
    with OrthancServer() as server:
        yield server


@pytest.fixture(scope="session")
def relays() -> Iterator[Relays]:
    """NVFlare's processes of three hospitals, one with a client of NVFlare's own, and a hostile server; no agents."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:  # a socket's path is short
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # for components of tests
        patch.setenv(GROUP, grp.getgrgid(os.getgid()).gr_name)
        names = (*hostile_coordinator.HOSPITALS, hostile_coordinator.STOCK)
        with Relays(Path(folder), names, _alter) as one:
            yield one


def _alter(kits: Path) -> None:
    hostile_coordinator.install(kits)
    for name in hostile_coordinator.HOSPITALS:
        component = {"id": "impatient", "path": impatient.CLASS}
        hostile_coordinator.change(kits / name / "local" / "resources.json", component)
