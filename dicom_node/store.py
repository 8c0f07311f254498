"""Instances and reports on disk, by content hash, durable before anybody is told so (Storage Service, PS3.4 Annex B).

An instance becomes real in this order: bytes to a temporary file on the same file system → fsync of the file → rename
→ fsync of the folder → database commit → success to the sender. Whatever is cut off in between is either a
temporary file without a writer or a file without a row; `Store.recover` sweeps the one and imports the other.

Paths come from our own hashes alone, never from a peer's UIDs.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pydicom
import sqlalchemy as sa
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from . import durable, malformed, part10, records
from .core import audit, logs
from .core.audit import Event, Outcome, Record
from .core.database import Database, instance
from .core.errors import ConfigError, IntegrityError, RejectedInstance, Unavailable
from .core.failpoint import reach
from .core.settings import Settings
from .incoming import HEADER_BYTES, LONGEST_HEADER_BYTES, Incoming, content_hash
from .records import Content, Received

log = logs.get(__name__)
#: What the node takes. FOR PROCESSING is taken so that its refusal is told per image by the selection rules.
IMAGES: frozenset[str] = frozenset(
    {
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        DigitalXRayImageStorageForProcessing,
        SecondaryCaptureImageStorage,
    }
)
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Recovery:
    """What `Store.recover` found."""

    swept: int
    imported: int
    missing: int


class Store:
    """The site's instances and reports.

    Parameters
    ----------
    settings : Settings
        ``site.state_dir``, ``scp.maximum_instance_bytes`` and ``scp.minimum_free_bytes`` are used.
    database : Database
        The site's records, migrated.
    sop_classes : collection of str
        Storage SOP classes to take.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        sop_classes: Collection[str] = IMAGES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        root = settings.site.state_dir
        self._root = root
        self._maximum = settings.scp.maximum_instance_bytes
        self._minimum_free = settings.scp.minimum_free_bytes
        self._sop_classes = frozenset(sop_classes)
        self._clock = clock
        self._database = database
        self._commits = records.GroupCommit(database)
        try:
            (root / "tmp").mkdir(parents=True, exist_ok=True)
            for kind in ("instances", "reports"):
                for number in range(256):  # made ahead, so that receiving never has to make a folder durable
                    (root / kind / f"{number:02x}").mkdir(parents=True, exist_ok=True)
                durable.sync_folder(root / kind)
            durable.sync_folder(root)
        except OSError as error:
            raise ConfigError(f"cannot use the state folder {root}: {error.strerror}") from error
        if (root / "tmp").stat().st_dev != (root / "instances").stat().st_dev:
            raise ConfigError(f"the folders tmp and instances in {root} must be on one file system")

    def takes(self, sop_class_uid: str) -> bool:
        """Tell whether instances of this SOP class are kept."""
        return sop_class_uid in self._sop_classes

    def begin(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> Incoming:
        """Open a temporary file for a data set that is about to arrive.

        Parameters
        ----------
        sop_class_uid, sop_instance_uid, transfer_syntax_uid : str
            As the sender announces them; `receive` compares them with the data set.

        Raises
        ------
        RejectedInstance
            The SOP class is not taken (0x0122) or the announced instance UID is no UID (0x0117).
        Unavailable
            The disk is full.
        """
        if not self.takes(sop_class_uid):
            name = UID_dictionary.get(sop_class_uid, ("private or unknown objects",))[0]
            raise RejectedInstance(
                f"the node takes CR, DX and SC images alone, not {name}",
                status=part10.SOP_CLASS_NOT_SUPPORTED,
                code="sop-class",
            )
        if not part10.is_uid(sop_instance_uid):
            raise RejectedInstance(
                "the announced SOP Instance UID is not a valid UID (PS3.5 9.1)",
                status=part10.INVALID_INSTANCE,
                code="uid-invalid",
            )
        try:
            disk = os.statvfs(self._root)
        except OSError as error:
            raise durable.disk_error(error) from error
        if disk.f_bavail * disk.f_frsize < self._minimum_free:
            raise Unavailable("the disk has less free space than scp.minimum_free_bytes", code="disk-full")
        return Incoming(self._root / "tmp", sop_class_uid, sop_instance_uid, transfer_syntax_uid, self._maximum)

    def receive(self, incoming: Incoming, source: str) -> Received:
        """Keep a data set for good; when this returns, it survives a power cut.

        Idempotent: the same content under the same SOP Instance UID changes nothing. Other content under the same UID
        is kept beside the first and becomes the current one; both are flagged.

        Parameters
        ----------
        incoming : Incoming
            The whole data set; its temporary file is gone when this returns or raises.
        source : str
            Who sent it, e.g. an AE title and address; no patient data.

        Raises
        ------
        RejectedInstance
            The data set is not what was announced (0xA900), or see `part10.identify`.
        Unavailable
            Disk or database cannot take it now.
        """
        try:
            identity = incoming.identity()
            digest, path = incoming.sha256, self.path(incoming.sha256)
            if path.is_file():
                with self._database.read() as connection:
                    earlier = records.known(connection, identity.sop_instance_uid, digest)
                if earlier is not None:
                    return earlier
            incoming.settle(path)
            content = Content(identity, incoming.transfer_syntax_uid, digest, incoming.size, source[:80])
            received = self._commits.run(lambda connection: records.add(connection, content, self._clock()))
            reach("store-committed")
            return received
        finally:
            incoming.discard()

    def add_file(self, file: Path | bytes, source: str) -> Received:
        """Keep a DICOM file that came another way than by C-STORE.

        Parameters
        ----------
        file : Path or bytes
            A PS3.10 file; a path is read and left where it is.

        Raises
        ------
        RejectedInstance, Unavailable
            As `begin` and `receive`; nothing is recorded then, see `reject`.
        """
        stream = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
        with stream:
            beginning = stream.read(HEADER_BYTES)
            syntax, offset = part10.data_set(beginning)
            try:
                identity = part10.identify(memoryview(beginning)[offset:], syntax, whole=len(beginning) < HEADER_BYTES)
            except part10.Truncated:
                beginning += stream.read(LONGEST_HEADER_BYTES)
                identity = part10.identify(memoryview(beginning)[offset:], syntax, whole=True)
            incoming = self.begin(identity.sop_class_uid, identity.sop_instance_uid, syntax)
            try:
                incoming.write(memoryview(beginning)[offset:])
                while chunk := stream.read(_COPY_BYTES):
                    incoming.write(chunk)
            except BaseException:
                incoming.discard()
                raise
        return self.receive(incoming, source)

    def reject(self, error: RejectedInstance, sop_class_uid: str, source: str) -> None:
        """Record an instance that was not kept, with its reason."""
        self._commits.run(
            lambda connection: records.reject(connection, error, sop_class_uid, source[:80], self._clock())
        )

    def alert(self, what: str, source: str, detail: dict[str, str | int]) -> None:
        """Record a security alert in the audit trail."""
        self._commits.run(lambda connection: records.alert(connection, what, source, detail, self._clock()))

    def path(self, sha256: str) -> Path:
        """Return where the instance of this content is kept."""
        return self._root / "instances" / sha256[:2] / sha256

    def dataset(self, sha256: str) -> pydicom.Dataset:
        """Read an instance, after checking it against its hash.

        Raises
        ------
        IntegrityError
            The file is gone or altered.
        Refused
            It is as it was received, and cannot be parsed.
        """
        content = self._verified(sha256)
        with malformed.refused("the data set"):
            return pydicom.dcmread(io.BytesIO(content), force=True)

    def put_report(self, content: bytes) -> str:
        """Keep one of our own reports (a whole PS3.10 file), as durably as an instance, and return its SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        temporary = durable.TemporaryFile(self._root / "tmp")
        try:
            temporary.write(content)
            temporary.settle(self._report_path(digest), len(content))
        finally:
            temporary.discard()
        return digest

    def report(self, sha256: str) -> bytes:
        """Return a report, after checking it against its hash.

        Raises
        ------
        IntegrityError
            The file is gone or altered.
        """
        try:
            content = self._report_path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError("a report is missing on disk: restore it from a backup") from error
        except OSError as error:
            raise durable.disk_error(error) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise IntegrityError("a report was altered on disk: restore it from a backup")
        return content

    def recover(self) -> Recovery:
        """Bring disk and records together after a crash; call it once when the receiving service starts.

        Temporary files without a living writer are removed. A file without a row was received whole but not
        acknowledged: it is imported. A row without a file is a loss: it is audited and logged, the instance is refused.
        """
        swept = sum(durable.sweep(path) for path in sorted((self._root / "tmp").iterdir()))
        imported = missing = 0
        for folder in sorted((self._root / "instances").iterdir()):  # folder by folder: a site may hold millions
            on_disk = {entry.name for entry in os.scandir(folder)}
            columns = (instance.c.id, instance.c.study_id, instance.c.sha256, instance.c.refusal_code)
            with self._database.read() as connection:
                rows = connection.execute(sa.select(*columns).where(instance.c.sha256.startswith(folder.name))).all()
            imported += sum(self._import(digest) for digest in sorted(on_disk - {row.sha256 for row in rows}))
            lost = [row for row in rows if row.sha256 not in on_disk and row.refusal_code != records.FILE_MISSING]
            for row in lost:
                self._report_loss(row.id, row.study_id)
            missing += len(lost)
            for row in rows:
                if row.sha256 in on_disk and row.refusal_code == records.FILE_MISSING:
                    self._commits.run(partial(records.found_again, instance_id=row.id, now=self._clock()))
        if swept or imported:
            log.warning("store-recovered", count=imported)
        return Recovery(swept, imported, missing)

    def _import(self, digest: str) -> bool:
        """Record an instance whose file was durable before the crash and whose row was not."""
        try:
            content = self._verified(digest)
            self.add_file(content, "recovery")
        except (IntegrityError, RejectedInstance) as error:
            self.alert("stray-file", "dicom-node serve", {"code": error.code, "name": digest[:64]})
            log.error("stray-file", **logs.describe(error))
            return False
        return True

    def _verified(self, sha256: str) -> bytes:
        try:
            content = self.path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError("a received instance is missing on disk: restore it from a backup") from error
        except OSError as error:
            raise durable.disk_error(error) from error
        try:
            syntax, offset = part10.data_set(content)
        except RejectedInstance:
            syntax, offset = "", 0
        if content_hash(syntax, memoryview(content)[offset:]).hexdigest() != sha256:
            raise IntegrityError("a received instance was altered on disk: restore it from a backup")
        return content

    def _report_loss(self, instance_id: int, study_id: int) -> None:
        reason = "the file of this acknowledged instance is missing on disk: restore it from a backup"
        record = Record(
            Event.SECURITY_ALERT,
            "instance-missing",
            "R",
            "dicom-node serve",
            Outcome.MAJOR_FAILURE,
            study_id,
            {"instance_id": instance_id},
        )
        with self._database.write() as connection:
            lost = instance.update().where(instance.c.id == instance_id)
            connection.execute(lost.values(refusal_code=records.FILE_MISSING, refusal=reason))
            audit.append(connection, record, self._clock())
        log.error("instance-missing", instance_id=instance_id, study_id=study_id)

    def _report_path(self, sha256: str) -> Path:
        return self._root / "reports" / sha256[:2] / sha256
