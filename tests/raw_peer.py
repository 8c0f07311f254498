"""A DICOM requestor that speaks PDUs byte by byte: as fast as the network for figures, as wrong as a test wants."""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Sequence
from typing import Self

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

from dicom_node import uids

VERIFICATION = "1.2.840.10008.1.1"
DX = str(DigitalXRayImageStorageForPresentation)
EXPLICIT = str(ExplicitVRLittleEndian)
ACCEPTED, REJECTED, P_DATA, RELEASE_RP, ABORTED = 2, 3, 4, 6, 7


def association_request(
    contexts: Sequence[tuple[str, Sequence[str]]], *, calling: str = "STORESCU", called: str = "VEILRAY"
) -> bytes:
    """An A-ASSOCIATE-RQ PDU; the contexts' IDs are 1, 3, 5 and so on."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, called
    proposed = []
    for number, (abstract, syntaxes) in enumerate(contexts):
        context = build_context(abstract, list(syntaxes))
        context.context_id = 2 * number + 1
        proposed.append(context)
    request.presentation_context_definition_list = proposed
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3.4"
    request.user_information = [length, implementation]
    return bytes(A_ASSOCIATE_RQ(request).encode())


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU of any type."""
    return struct.pack(">BxI", kind, len(body)) + body


def pdv(content: bytes, *, command: bool, last: bool, context_id: int = 1) -> bytes:
    """A P-DATA-TF PDU with one presentation data value."""
    control = command | last << 1
    return pdu(4, struct.pack(">IBB", len(content) + 2, context_id, control) + content)


def command(
    field: int, sop_class: str, sop_instance: str = "", *, data_set: bool = False, message_id: int = 1
) -> bytes:
    """A request's command set, or a response's when `field` has its bit."""
    elements = [
        (0x0002, sop_class.encode() + b"\0" * (len(sop_class) % 2)),
        (0x0100, struct.pack("<H", field)),
        (0x0120 if field & 0x8000 else 0x0110, struct.pack("<H", message_id)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 0x0001 if data_set else 0x0101)),
    ]
    if sop_instance:
        elements.append((0x1000, sop_instance.encode() + b"\0" * (len(sop_instance) % 2)))
    body = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


class RawPeer:
    """One connection.

    Attributes
    ----------
    maximum : int
        Longest PDU that the acceptor takes, read from its A-ASSOCIATE-AC.
    """

    def __init__(self, port: int, *, timeout: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.maximum = 16384

    def associate(
        self,
        contexts: Sequence[tuple[str, Sequence[str]]] = ((DX, [EXPLICIT]),),
        *,
        calling: str = "STORESCU",
        called: str = "VEILRAY",
    ) -> int:
        """Ask for an association; returns the type of the PDU that answers."""
        self.socket.sendall(association_request(contexts, calling=calling, called=called))
        kind, body = self.read()
        if kind == ACCEPTED:
            at = body.index(b"\x51\0\0\4")
            self.maximum = min(struct.unpack_from(">I", body, at + 4)[0] or 131072, 131072)
        return kind

    def store(self, data_set: bytes | memoryview, sop_instance: str, sop_class: str = DX, context_id: int = 1) -> int:
        """Send one instance and return the status."""
        self.send_command(command(1, sop_class, sop_instance, data_set=True), context_id)
        view, room = memoryview(data_set), self.maximum - 6
        for start in range(0, len(view), room):
            part = view[start : start + room]
            last = start + room >= len(view)
            header = struct.pack(">BxIIBB", 4, len(part) + 6, len(part) + 2, context_id, last << 1)
            self.socket.sendall(header)
            self.socket.sendall(part)
        return self.status()

    def send_command(self, encoded: bytes, context_id: int = 1) -> None:
        """Send a command set."""
        self.socket.sendall(pdv(encoded, command=True, last=True, context_id=context_id))

    def status(self) -> int:
        """Read a response and return its Status (0000,0900)."""
        kind, body = self.read()
        assert kind == P_DATA, f"PDU type {kind} instead of a response"
        return int(struct.unpack_from("<H", body, body.index(b"\0\0\0\x09\2\0\0\0") + 8)[0])

    def echo(self) -> int:
        """C-ECHO on context 1."""
        self.send_command(command(0x30, VERIFICATION))
        return self.status()

    def read(self) -> tuple[int, bytes]:
        """Read a PDU: its type and body; type 0 when the connection is closed."""
        header = self._read(6)
        if len(header) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxI", header)
        return kind, self._read(length)

    def _read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            try:
                # A receiver that answers in two small writes would otherwise wait for our delayed acknowledgement.
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                part = self.socket.recv(count - len(content))
            except ConnectionResetError:
                part = b""
            if not part:
                break
            content += part
        return content

    def release(self) -> int:
        """Release the association; returns the type of the PDU that answers."""
        self.socket.sendall(pdu(5, b"\0\0\0\0"))
        return self.read()[0]

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def image(name: str, *, study: str = "study", side: int = 16, sop_class: str = DX) -> tuple[Dataset, str]:
    """A small DX image and its SOP Instance UID."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uids.derive("instance", name)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uids.derive("study", study), uids.derive("series", study)
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Doe^Jo", "4711", "DX"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = side
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.add_new(0x7FE00010, "OW", np.random.default_rng(1).integers(0, 4096, side * side, "<u2").tobytes())
    dataset.file_meta = FileMetaDataset()
    return dataset, str(dataset.SOPInstanceUID)


def encode(dataset: Dataset, *, implicit: bool = False, little: bool = True) -> bytes:
    """The encoded data set, without file meta information."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    write_dataset(stream, dataset)
    return bytes(stream.getvalue())


def part10(dataset: Dataset) -> bytes:
    """The data set as a PS3.10 file, by pydicom."""
    stream = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
