"""Every process killed after every step: nothing acknowledged is lost, and each study has exactly one report."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage

from dicom_node import phantom, scu
from dicom_node.core import audit
from dicom_node.core.database import Database, instance, study
from dicom_node.core.errors import Unavailable
from dicom_node.core.failpoint import PLACES
from dicom_node.demo import watch
from dicom_node.demo.orthanc_server import OrthancServer
from dicom_node.demo.site import PACS_AE
from dicom_node.demo.stack import Stack
from dicom_node.store import Store
from tests.system.forked import forked

SERVICES = {
    "store": "serve",
    "assembler": "serve",
    "delivery": "serve",
    "worker": "worker",
    "party0": "worker",
    "party1": "party",
    "dealer": "dealer",
}


class Hospital:
    """The whole product and an Orthanc, with studies sent one after another."""

    def __init__(self, folder: Path, pacs: OrthancServer, stack: Stack) -> None:
        self.folder, self.pacs, self.stack = folder, pacs, stack
        self.sent = 0

    def send(self) -> tuple[phantom.Study, Path, bool]:
        """Send a new study once; the last value tells whether it was acknowledged."""
        self.sent += 1
        made = phantom.Study.numbered(self.sent, key="crash")
        path = self.folder / f"{self.sent}.dcm"
        picture = phantom.draw(self.sent, "consolidation", (256, 256))
        phantom.dataset(picture, study=made).save_as(path, enforce_file_format=True)
        return made, path, self.resend(path)

    def resend(self, path: Path) -> bool:
        stack = self.stack
        (outcome,) = scu.send(
            [path], host="127.0.0.1", port=stack.scp_port, called=stack.ae_title, calling=stack.sender_ae
        )
        return outcome.ok

    def reports(self, made: phantom.Study) -> list[str]:
        """SOP classes of the reports that the PACS holds for a study."""
        found = self.pacs.find(StudyInstanceUID=made.study_uid, Modality="SR")
        return sorted(pydicom.dcmread(io.BytesIO(self.pacs.file(one))).SOPClassUID for one in found)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("crashes")
    with forked(Stack(folder, quiet_s=0.3)) as stack:
        modalities = {"veilray": (stack.ae_title, "127.0.0.1", stack.scp_port)}
        with OrthancServer(aet=PACS_AE, modalities=modalities) as pacs:
            stack.start(pacs.dicom_port)
            yield Hospital(folder, pacs, stack)


def crash(hospital: Hospital, place: str) -> None:
    """Arm a place, start its service, and return once the service died there, or is ready to."""
    name = SERVICES[place.partition("-")[0]]
    try:
        hospital.stack.restart(name, failpoint=place)
    except Unavailable:
        assert not hospital.stack.services[name].alive  # bundles are fetched ahead: the place came before "ready"


#: Crashes of party 1 and of the dealer are tested by themselves, too (`test_encrypted_faults`, `test_dealer_pool`).
ELSEWHERE_TOO = {"party1": pytest.mark.campaign, "dealer": pytest.mark.campaign}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=ELSEWHERE_TOO.get(who, ()))
        for place, who in ((one, one.partition("-")[0]) for one in PLACES)
        if who in SERVICES
    ],
)
def test_a_crash_at_this_place_loses_nothing_and_doubles_nothing(hospital: Hospital, place: str) -> None:
    service = hospital.stack.services[SERVICES[place.partition("-")[0]]]
    crash(hospital, place)
    if service.name == "party" and hospital.stack.services["worker"].alive:
        hospital.stack.restart("worker")  # what it fetched ahead is spent: a query must go through the armed party
    made, path, acknowledged = hospital.send()
    deadline = time.monotonic() + 30
    while service.alive:
        assert time.monotonic() < deadline, f"{place} was never reached"
        time.sleep(0.05)
    service.arm(None)
    service.start()
    service.wait_ready()
    if not acknowledged:  # as every modality does
        assert hospital.resend(path)
    ((_, seen),) = watch.follow(hospital.stack.settings.database_url, [made.study_uid], 60.0)
    assert [one.state for one in seen.classified] == ["done"]
    assert hospital.reports(made) == sorted([Comprehensive3DSRStorage, EnhancedSRStorage])


def test_after_all_crashes_records_files_and_audit_trail_agree(hospital: Hospital) -> None:
    settings = hospital.stack.settings
    database = Database(settings.database_url)
    store = Store(settings, database)
    with database.read() as connection:
        audit.verify(connection)
        assert connection.execute(sa.select(sa.func.count()).select_from(study)).scalar_one() == hospital.sent
        hashes = connection.execute(sa.select(instance.c.sha256)).scalars().all()
    assert len(hashes) == len(set(hashes)) == hospital.sent
    for digest in hashes:
        assert store.dataset(digest).Modality == "DX"
    on_disk = {path.name for path in (settings.site.state_dir / "instances").rglob("*") if path.is_file()}
    assert on_disk == set(hashes)
    assert list((settings.site.state_dir / "tmp").iterdir()) == []
    database.close()
