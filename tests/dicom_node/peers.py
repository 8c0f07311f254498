"""Peers of the delivery tests: a small report, DCMTK's storescp, and an SCP that answers as the test says."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import Comprehensive3DSRStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from dicom_node import uids
from dicom_node.core.settings import DestinationSettings


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def report(name: str = "one", *, sop_class: str = Comprehensive3DSRStorage, predecessor: str | None = None) -> bytes:
    """A minimal structured report: a container with one sentence."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uids.derive("test report", name)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uids.derive("study", name), uids.derive("series", name)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Doe^Jo", "4711", "", ""
    dataset.StudyDate = dataset.ContentDate = "20240102"
    dataset.StudyTime = dataset.ContentTime = "101010"
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.Manufacturer, dataset.SeriesNumber, dataset.InstanceNumber = "SR", "VeilRay", 1, 1
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    dataset.ReferencedPerformedProcedureStepSequence = dataset.PerformedProcedureCodeSequence = []
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    dataset.ConceptNameCodeSequence = [code("126000", "DCM", "Imaging Measurement Report")]
    sentence = Dataset()
    sentence.RelationshipType, sentence.ValueType, sentence.TextValue = "CONTAINS", "TEXT", "Nothing seen"
    sentence.ConceptNameCodeSequence = [code("121106", "DCM", "Comment")]
    dataset.ContentSequence = [sentence]
    if predecessor is not None:
        reference, series, study = Dataset(), Dataset(), Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, predecessor
        series.SeriesInstanceUID, series.ReferencedSOPSequence = uids.derive("earlier"), [reference]
        study.StudyInstanceUID, study.ReferencedSeriesSequence = dataset.StudyInstanceUID, [series]
        dataset.PredecessorDocumentsSequence = [study]
    return encode(dataset)


def image(name: str, *, sop_class: str = DigitalXRayImageStorageForPresentation, rows: int = 16) -> bytes:
    """A small grey image, one study each."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uids.derive("test image", name)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uids.derive("study", name), uids.derive("series", name)
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Doe^Jo", f"P{name}", "DX"
    dataset.Rows = dataset.Columns = rows
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes(range(8)) * (rows * rows // 8)
    return encode(dataset)


def encode(dataset: Dataset) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def uid(content: bytes) -> str:
    return str(pydicom.dcmread(BytesIO(content)).SOPInstanceUID)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def destination(port: int, **more: Any) -> DestinationSettings:
    return DestinationSettings(name="pacs", kind="dicom", ae_title="PACS", host="127.0.0.1", port=port, **more)


class Storescp:
    """DCMTK's storescp, writing what it takes into `folder`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    @property
    def destination(self) -> DestinationSettings:
        return destination(self.port)

    def kept(self) -> list[Dataset]:
        return [pydicom.dcmread(path) for path in sorted(self.folder.glob("*.*"))]


@contextmanager
def storescp(folder: Path, *options: str, classes: Sequence[str] = ()) -> Iterator[Storescp]:
    """Run storescp; with `classes`, it accepts these SOP classes alone (uncompressed)."""
    executable = shutil.which("storescp")
    assert executable is not None, "storescp is not installed: apt-get install dcmtk"
    received = folder / "received"
    received.mkdir(parents=True)
    if classes:
        lines = ["[[TransferSyntaxes]]", "[Plain]"]
        lines += ["TransferSyntax1 = LocalEndianExplicit", "TransferSyntax2 = LittleEndianImplicit"]
        lines += ["[[PresentationContexts]]", "[Some]"]
        lines += [f"PresentationContext{n} = {name}\\Plain" for n, name in enumerate(classes, start=1)]
        lines += ["[[Profiles]]", "[Default]", "PresentationContexts = Some"]
        configuration = folder / "storescp.cfg"
        configuration.write_text("\n".join(lines) + "\n")
        options = (*options, "-xf", str(configuration), "Default")
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([executable, "-od", str(received), *options, str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        assert process.poll() is None, (folder / "log").read_text()
        yield Storescp(received, port)
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def scripted_scp(
    on_store: Any, classes: Sequence[str], *, ae_title: str = "PACS", require_called: bool = False, calling: str = ""
) -> Iterator[int]:
    """A real SCP whose C-STORE handler is the test's; yields its port."""
    entity = AE(ae_title)
    entity.require_called_aet = require_called
    entity.require_calling_aet = [calling] if calling else []
    entity.add_supported_context(Verification)
    for sop_class in classes:
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
