"""The Lua route of `orthanc_config` in a real Orthanc: every image once, no loop, nothing forgotten."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage

from dicom_node.core.database import Database, instance
from dicom_node.core.settings import DestinationSettings, Settings
from dicom_node.scp import Scp
from dicom_node.scu import Scu
from dicom_node.store import Store
from tests.dicom_node.peers import image, report, uid
from tests.system.orthanc_server import OrthancServer, free_port

CONFIG = Path(__file__).resolve().parents[2] / "orthanc_config"


def shipped_configuration(**changes: Any) -> dict[str, Any]:
    """`orthanc.json` as Orthanc reads it, with what a test must change."""
    text = re.sub(r"^\s*//.*$", "", (CONFIG / "orthanc.json").read_text(), flags=re.MULTILINE)
    return {**json.loads(text), "LuaScripts": [str(CONFIG / "veilray.lua")], "StableAge": 1, **changes}


class Node:
    """Our Storage SCP with its records; it may stop and start on the same port."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.model_validate(
            {
                "site": {"name": "Test", "state_dir": folder},
                "scp": {"port": free_port(), "peers": [{"ae_title": "ORTHANC", "addresses": ["127.0.0.1"]}]},
                "inference": {"engine": "plaintext"},
            }
        )
        self.database = Database(self.settings.database_url)
        self.database.migrate()
        self.store = Store(self.settings, self.database)
        self.scp: Scp | None = None

    def start(self) -> None:
        self.scp = Scp(self.settings, self.store)
        self.scp.start()

    def stop(self) -> None:
        if self.scp is not None:
            self.scp.stop()
        self.scp = None

    def received(self) -> list[str]:
        with self.database.read() as connection:
            return sorted(connection.execute(sa.select(instance.c.sop_instance_uid)).scalars())


class Hospital:
    """An Orthanc that routes to a node, both with their shipped configuration."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.node = Node(folder / "state")
        modality = {**shipped_configuration()["DicomModalities"]["VEILRAY"], "Port": self.node.settings.scp.port}
        config = shipped_configuration(
            DicomModalities={"VEILRAY": {**modality, "Timeout": 2}},
            HttpPort=free_port(),
            DicomPort=free_port(),
            **changes,
        )
        self.orthanc = OrthancServer(config=config)

    def transfers(self) -> list[str]:
        """The states of all jobs that sent something to VeilRay."""
        jobs = self.orthanc.get("/jobs", expand="")
        return [job["State"] for job in jobs if job["Type"] == "DicomModalityStore"]

    def stable_events(self) -> int:
        changes = self.orthanc.get("/changes", limit="1000")["Changes"]
        return sum(change["ChangeType"] == "StableStudy" for change in changes)

    def marked(self, content: bytes) -> bool:
        (identifier,) = self.orthanc.find(SOPInstanceUID=uid(content))
        return "VeilRayRouted" in self.orthanc.get(f"/instances/{identifier}/metadata")

    def close(self) -> None:
        self.orthanc.close()
        self.node.stop()
        self.node.database.close()


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    made = Hospital(tmp_path)
    made.node.start()
    made.orthanc.start()
    yield made
    made.close()


def until(happened: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.05)


def of_study(content: bytes, other: bytes) -> bytes:
    """`content` as part of the study of `other`."""
    dataset, parent = pydicom.dcmread(BytesIO(content)), pydicom.dcmread(BytesIO(other))
    dataset.StudyInstanceUID, dataset.PatientID = parent.StudyInstanceUID, parent.PatientID
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_a_study_is_routed_once_and_our_report_does_not_route_it_again(hospital: Hospital) -> None:
    dx = image("dx")
    cr = of_study(image("cr", sop_class=ComputedRadiographyImageStorage), dx)
    ct = of_study(image("ct", sop_class=CTImageStorage), dx)
    for content in (dx, cr, ct):
        hospital.orthanc.upload(content)
    until(lambda: hospital.marked(dx) and hospital.marked(cr))
    assert hospital.node.received() == sorted([uid(dx), uid(cr)])

    archive = DestinationSettings(
        name="orthanc", kind="dicom", ae_title="ORTHANC", host="127.0.0.1", port=hospital.orthanc.dicom_port
    )
    before = hospital.stable_events()
    answer = of_study(report(), dx)
    Scu("VEILRAY").store(archive, answer)
    until(lambda: hospital.stable_events() > before)
    hospital.orthanc.upload(dx)  # a resend of the image
    late = of_study(image("late"), dx)
    hospital.orthanc.upload(late)
    until(lambda: hospital.marked(late))
    assert hospital.transfers() == ["Success", "Success"]  # the study, then the late image alone
    assert hospital.node.received() == sorted([uid(dx), uid(cr), uid(late)])
    assert not hospital.marked(answer)


def test_what_could_not_be_sent_goes_out_once_the_node_is_back(hospital: Hospital) -> None:
    hospital.node.stop()
    missed = image("missed")
    hospital.orthanc.upload(missed)
    until(lambda: hospital.transfers() == ["Failure"])
    assert not hospital.marked(missed)
    hospital.node.start()
    other = image("other")  # any study that gets through takes the missed ones along
    hospital.orthanc.upload(other)
    until(lambda: hospital.marked(other) and hospital.marked(missed))
    assert sorted(hospital.transfers()) == ["Failure", "Success", "Success"]
    assert hospital.node.received() == sorted([uid(missed), uid(other)])


def test_marks_survive_a_restart_of_orthanc(hospital: Hospital) -> None:
    first = image("first")
    hospital.orthanc.upload(first)
    until(lambda: hospital.marked(first))
    hospital.orthanc.stop()
    hospital.orthanc.start()
    second = of_study(image("second"), first)
    hospital.orthanc.upload(second)
    until(lambda: hospital.marked(second))
    assert sum(job["Content"]["InstancesCount"] for job in hospital.orthanc.get("/jobs", expand="")) == 2
    assert hospital.node.received() == sorted([uid(first), uid(second)])


def test_an_orthanc_without_the_user_metadata_says_so_and_does_not_loop(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, UserMetadata={})
    try:
        hospital.node.start()
        hospital.orthanc.start()
        dx = image("dx")
        hospital.orthanc.upload(dx)
        until(lambda: hospital.transfers() == ["Success"])
        until(lambda: "put it into UserMetadata" in hospital.orthanc.log)
        before = hospital.stable_events()
        hospital.orthanc.upload(of_study(report(), dx))
        until(lambda: hospital.stable_events() > before)
        assert hospital.transfers() == ["Success"]
    finally:
        hospital.close()


def test_the_node_is_a_modality_that_the_shipped_configuration_can_echo(hospital: Hospital) -> None:
    answer = httpx.post(f"{hospital.orthanc.url}/modalities/VEILRAY/echo", content="{}", timeout=10)
    assert answer.status_code == 200
