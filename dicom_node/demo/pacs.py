"""The receiving PACS of the demonstration: Orthanc where it is installed, else our own Storage SCP and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from ..core.database import Database, instance, study
from ..core.settings import InferenceSettings, PeerSettings, ScpSettings, Settings, SiteSettings
from ..scp import Scp
from ..store import IMAGES, Store
from .orthanc_server import OrthancServer, find_orthanc
from .site import PACS_AE

REPORTS = frozenset({Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage})


class Pacs(Protocol):
    """What the demonstration asks of a PACS."""

    name: str
    dicom_port: int

    def reports(self, study_instance_uid: str) -> list[bytes]:
        """Return the SR files that the PACS holds for a study."""

    def close(self) -> None:
        """Stop it."""


class OrthancPacs:
    """A throw-away Orthanc."""

    name = "Orthanc"

    def __init__(self, node_ae: str, node_port: int) -> None:
        self.server = OrthancServer(aet=PACS_AE, modalities={"veilray": (node_ae, "127.0.0.1", node_port)}).start()
        self.dicom_port = self.server.dicom_port

    def reports(self, study_instance_uid: str) -> list[bytes]:
        """Return the SR files that the PACS holds for a study."""
        found = self.server.find(StudyInstanceUID=study_instance_uid, Modality="SR")
        return [self.server.file(identifier) for identifier in found]

    def close(self) -> None:
        """Stop it and delete its storage."""
        self.server.close()


class OwnPacs:
    """Our Storage SCP with a store of its own, inside this process.

    Parameters
    ----------
    folder : Path
        Takes what is received.
    port : int
        To listen on.
    callers : sequence of str
        AE titles that may send from loopback.
    """

    name = "VeilRay's own Storage SCP (Orthanc is not installed)"

    def __init__(self, folder: Path, port: int, callers: Sequence[str]) -> None:
        peers = tuple(PeerSettings(ae_title=title, addresses=("127.0.0.1",)) for title in callers)
        settings = Settings(
            site=SiteSettings(name="PACS", state_dir=folder),
            scp=ScpSettings(ae_title=PACS_AE, port=port, peers=peers),
            inference=InferenceSettings(engine="plaintext"),
        )
        self._database = Database(settings.database_url)
        self._database.migrate()
        self._store = Store(settings, self._database, sop_classes=IMAGES | REPORTS)
        self._scp = Scp(settings, self._store)
        self._scp.start()
        self.dicom_port = self._scp.port

    def reports(self, study_instance_uid: str) -> list[bytes]:
        """Return the SR files that the PACS holds for a study."""
        held = (
            sa.select(instance.c.sha256)
            .join(study, study.c.id == instance.c.study_id)
            .where(study.c.study_instance_uid == study_instance_uid, instance.c.sop_class_uid.in_(REPORTS))
        )
        with self._database.read() as connection:
            hashes = connection.execute(held).scalars().all()
        return [self._store.path(digest).read_bytes() for digest in hashes]

    def close(self) -> None:
        """Stop it."""
        self._scp.stop()
        self._database.close()


def open_pacs(folder: Path, own_port: int, node_ae: str, node_port: int, sender_ae: str) -> Pacs:
    """Start the PACS that this machine can run."""
    return OrthancPacs(node_ae, node_port) if find_orthanc() else OwnPacs(folder, own_port, (node_ae, sender_ae))


def export(pacs: Pacs, study_instance_uid: str, folder: Path, label: str) -> list[Path]:
    """Write the study's reports as the PACS holds them into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, content in enumerate(pacs.reports(study_instance_uid), start=1):
        path = folder / f"{label}-sr-{number}.dcm"
        path.write_bytes(content)
        written.append(path)
    return written
