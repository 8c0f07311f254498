"""Verification and Storage SCU: C-ECHO and C-STORE (PS3.4 Annexes A and B; association PS3.8 section 7.1).

A report is an instance of Comprehensive 3D SR Storage (IHE AIR). An archive that does not accept this SOP class gets
the same tree as Comprehensive SR: our trees hold no SCOORD3D, the only content item that the older class lacks. That
form is another instance, so it has a UID of its own, derived from the first one: a resend is still a resend.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, _config, build_context
from pynetdicom.transport import AssociationSocket

from . import uids
from .core import logs
from .core.errors import Refused, Unavailable
from .core.settings import DestinationSettings, ScpSettings
from .malformed import refused
from .storage_status import SOP_CLASS_NOT_SUPPORTED, Receipt, judge
from .tls import client_context

log = logs.get(__name__)
_config.LOG_HANDLER_LEVEL = "none"  # the library's own handlers write identifiers into logs
_config.STORE_SEND_CHUNKED_DATASET = True  # a file given by path leaves as it is: not decoded, not held in memory

VERIFICATION = "1.2.840.10008.1.1"
UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
MAXIMUM_CONTEXTS = 120  # an association has room for 128 (PS3.8 section 9.3.2.2)
#: Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21).
REJECTED_PERMANENT = 1
SOURCE_PRESENTATION = 3
_REASONS = {
    (1, 2): "it does not know the application context",
    (1, 3): "it does not know our calling AE title",
    (1, 7): "it does not answer to that called AE title",
    (2, 2): "it does not know the protocol version",
    (3, 1): "it is congested",
    (3, 2): "too many associations are open",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one file that was sent.

    Attributes
    ----------
    status : int or None
        The C-STORE status; None when no answer came.
    meaning : str
        What it means, in words.
    ok : bool
        Whether the peer holds the file.
    """

    path: Path
    status: int | None
    meaning: str
    ok: bool

    @property
    def status_text(self) -> str:
        """The status as DICOM writes it, or a dash."""
        return "-" if self.status is None else f"0x{self.status:04X}"


class Scu:
    """Opens associations as one application entity.

    Parameters
    ----------
    ae_title : str
        Our calling AE title.
    response_s : float
        Longest silence of a peer during an operation, seconds.
    negotiation_s : float
        Longest time to connect, and again to negotiate or release the association, seconds.
    """

    def __init__(self, ae_title: str, response_s: float = 30.0, negotiation_s: float = 10.0) -> None:
        self._response_s = response_s
        self._negotiation_s = negotiation_s
        self._entity = _Entity(ae_title)
        self._entity.acse_timeout = negotiation_s
        self._entity.connection_timeout = negotiation_s
        self._entity.dimse_timeout = response_s
        self._entity.network_timeout = response_s

    @classmethod
    def of(cls, settings: ScpSettings) -> Scu:
        """Call by the title and with the patience of the site's own SCP."""
        return cls(settings.ae_title, settings.network_timeout_s, settings.acse_timeout_s)

    @property
    def longest_s(self) -> float:
        """Time after which `store` has come back in any case, seconds: a lease must be longer."""
        return 3 * self._negotiation_s + 2 * self._response_s + 1.0

    def echo(self, destination: DestinationSettings) -> None:
        """Ask a destination whether it is there (C-ECHO).

        Raises
        ------
        Refused
            It rejects the association for good, e.g. because it does not know our AE title.
        Unavailable
            It is away or answers with an error.
        """
        with _Association(self, destination, [build_context(VERIFICATION)]) as association:
            status = association.raw.send_c_echo().get("Status")
        if status is None:
            raise Unavailable(f"destination {destination.name} did not answer the echo", code="destination-silent")
        judge(int(status), destination.name)

    def store(self, destination: DestinationSettings, report: bytes) -> Receipt:
        """Send a report (C-STORE), as Comprehensive SR where Comprehensive 3D SR is not accepted.

        Parameters
        ----------
        report : bytes
            A DICOM file with an uncompressed transfer syntax.

        Raises
        ------
        Refused
            The destination will never take it: see `storage_status.judge`; or it rejects the association for good, or
            accepts no SOP class that could carry the report.
        Unavailable
            The destination is away, busy or silent.
        """
        dataset: pydicom.Dataset = pydicom.dcmread(BytesIO(report))
        contexts = [build_context(dataset.SOPClassUID, UNCOMPRESSED)]
        if dataset.SOPClassUID == Comprehensive3DSRStorage:
            contexts.append(build_context(ComprehensiveSRStorage, UNCOMPRESSED))
        with _Association(self, destination, contexts) as association:
            if not association.accepts(dataset.SOPClassUID):
                dataset = as_comprehensive_sr(dataset)
            status = association.store(dataset)
            fallback = dataset.SOPClassUID == Comprehensive3DSRStorage and association.accepts(ComprehensiveSRStorage)
            if status == SOP_CLASS_NOT_SUPPORTED and fallback:  # it negotiates what its archive cannot keep
                dataset = as_comprehensive_sr(dataset)
                status = association.store(dataset)
        warning = judge(status, destination.name)
        return Receipt(status, warning, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))

    def send(self, destination: DestinationSettings, paths: Sequence[Path]) -> Iterator[Outcome]:
        """Send any DICOM files as they are, and tell of each what became of it.

        A peer that aborts over one file is called again for the files after it.

        Raises
        ------
        Refused, Unavailable
            No association could be opened.
        """
        pending: list[tuple[Path, UID, UID]] = []
        for path in paths:
            try:
                meta = pydicom.filereader.read_file_meta_info(path)
                if not meta.MediaStorageSOPInstanceUID:
                    raise ValueError("nothing to announce the instance by")
                pending.append((path, meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID))
            except (InvalidDicomError, AttributeError, OSError, EOFError, ValueError):
                yield Outcome(path, None, "not a DICOM file with complete file meta information (PS3.10)", False)
        while pending:
            wanted = dict.fromkeys(item[1:] for item in pending)
            contexts = [build_context(sop_class, syntax) for sop_class, syntax in list(wanted)[:MAXIMUM_CONTEXTS]]
            offered = set(list(wanted)[:MAXIMUM_CONTEXTS])
            later: list[tuple[Path, UID, UID]] = []
            with _Association(self, destination, contexts, all_refused_is_fatal=False) as association:
                for item in pending:
                    if item[1:] not in offered or not association.alive:
                        later.append(item)
                    elif association.accepts(*item[1:]):
                        yield association.outcome(item[0])
                    else:
                        yield Outcome(item[0], None, "the peer does not accept its SOP class or transfer syntax", False)
            pending = later


def send(
    paths: Sequence[Path], *, host: str, port: int, called: str = "VEILRAY", calling: str = "VEILRAY_SEND"
) -> Iterator[Outcome]:
    """Send files to a peer that stands in no settings file; see `Scu.send`."""
    peer = DestinationSettings(name="peer", kind="dicom", ae_title=called, host=host, port=port)
    return Scu(calling).send(peer, paths)


def as_comprehensive_sr(report: pydicom.Dataset) -> pydicom.Dataset:
    """Turn a Comprehensive 3D SR into the instance of Comprehensive SR that stands for it.

    References to earlier reports of ours change likewise: the same destination took those in this form, too.
    """
    turned = pydicom.dcmread(BytesIO(_encode(report)))
    references = [turned]
    for predecessor in turned.get("PredecessorDocumentsSequence", []):
        for series in predecessor.ReferencedSeriesSequence:
            references.extend(series.ReferencedSOPSequence)
    for item in references:
        prefix = "" if item is turned else "Referenced"
        if item[f"{prefix}SOPClassUID"].value == Comprehensive3DSRStorage:
            setattr(item, f"{prefix}SOPClassUID", ComprehensiveSRStorage)
            original = str(item[f"{prefix}SOPInstanceUID"].value)
            setattr(item, f"{prefix}SOPInstanceUID", uids.derive(original, "comprehensive-sr"))
    turned.file_meta.MediaStorageSOPClassUID = turned.SOPClassUID
    turned.file_meta.MediaStorageSOPInstanceUID = turned.SOPInstanceUID
    return turned


def _padded(path: Path) -> pydicom.Dataset:
    """Read a file of odd length, against PS3.5 7.1.1, and pad its pixel data: archives abort on odd fragments."""
    with refused("the file"):
        dataset = pydicom.dcmread(path)
        if len(dataset.get("PixelData", b"")) % 2:
            dataset.PixelData += b"\0"
        return dataset


def _encode(dataset: pydicom.Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


class _Socket(AssociationSocket):  # type: ignore[misc]  # pynetdicom is untyped to mypy
    """A transport connection without Nagle's delay, that cannot block for ever and always gives its socket back."""

    def _create_socket(self, address: Any) -> socket.socket:
        opened: socket.socket = super()._create_socket(address)
        # Nagle's algorithm together with delayed acknowledgements makes a report take 98 ms instead of 5.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # pynetdicom sends without a time-out: a peer that stops reading would hold the sending thread for ever.
        patience_ms = int(self.assoc.network_timeout * 1000)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        return opened

    def send(self, bytestream: bytes) -> None:
        super().send(bytestream)
        # Peers with Nagle's algorithm on (DCMTK, Orthanc) send an answer in two parts and hold the second back until
        # the first is acknowledged: at once, then, instead of after 40 ms. Linux forgets the wish, so it is repeated.
        with contextlib.suppress(OSError, AttributeError):  # the connection has gone: the next read notices it
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _shutdown_socket(self) -> None:
        super()._shutdown_socket()  # stays open when the peer has gone: shutdown() raises, and close() is skipped
        if self.socket is not None:
            self.socket.close()


class _Entity(AE):  # type: ignore[misc]  # pynetdicom is untyped
    """An application entity that calls through `_Socket`."""

    def _create_socket(self, assoc: Any, address: Any, tls_args: Any) -> _Socket:
        opened = _Socket(assoc, address=address)
        opened.tls_args = tls_args
        return opened


class _Association:
    """An association that is released at the end of its block, whatever happened in it."""

    def __init__(
        self, scu: Scu, destination: DestinationSettings, contexts: list[Any], *, all_refused_is_fatal: bool = True
    ) -> None:
        self._name = destination.name
        self._lost = False
        address = f"{destination.host}:{destination.port}"
        self._where = f"destination {destination.name} ({destination.ae_title} at {address})"
        tls = (client_context(destination.tls), destination.host) if destination.tls else None
        try:
            self.raw = scu._entity.associate(
                destination.host,
                destination.port,
                contexts,
                ae_title=destination.ae_title,
                max_pdu=131072,
                tls_args=tls,
            )
        except (OSError, ssl.SSLError) as error:
            message = f"{self._where} cannot be reached: its host name is unknown"
            raise Unavailable(message, code="unreachable") from error
        if not self.raw.is_established:
            self._explain(all_refused_is_fatal)

    def _explain(self, all_refused_is_fatal: bool) -> None:
        answer = self.raw.acceptor.primitive
        if self.raw.is_rejected:
            reason = _REASONS.get((answer.result_source, answer.diagnostic), "it gives no reason")
            message = f"{self._where} rejects the association: {reason}"
            # "Congested" and "limit exceeded" pass, even where a peer calls them permanent.
            if answer.result == REJECTED_PERMANENT and answer.result_source != SOURCE_PRESENTATION:
                raise Refused(message, code="association-rejected")
            raise Unavailable(message, code="association-rejected-for-now")
        if answer is not None and answer.result == 0 and all_refused_is_fatal:
            raise Refused(f"{self._where} accepts none of the SOP classes offered", code="sop-class-not-accepted")
        if answer is not None and answer.result == 0:
            return
        tls = "" if self.raw.dul.socket is None or not self.raw.dul.socket.tls_args else ", or TLS failed"
        raise Unavailable(f"{self._where} does not answer, or aborts{tls}", code="unreachable")

    @property
    def alive(self) -> bool:
        """Whether the peer still listens, or never accepted anything that could be sent."""
        return not self._lost and (bool(self.raw.is_established) or not self.raw.accepted_contexts)

    def accepts(self, sop_class: str, syntax: str | None = None) -> bool:
        """Tell whether the peer accepted a SOP class, in `syntax` where one is given."""
        return any(
            context.abstract_syntax == sop_class and syntax in (None, context.transfer_syntax[0])
            for context in self.raw.accepted_contexts
        )

    def store(self, dataset: pydicom.Dataset | Path) -> int:
        """Send one instance and return the status that the peer answers."""
        try:
            answer = self.raw.send_c_store(dataset)
        except RuntimeError as error:  # the association went away after the previous message
            self._lost = True
            raise Unavailable(f"{self._where} ended the association", code="association-lost") from error
        except ValueError:  # its text may quote the data set
            raise Refused("the file is malformed and cannot be encoded for sending", code="malformed") from None
        status = answer.get("Status")
        if status is None:
            self._lost = True
            raise Unavailable(f"{self._where} aborted or fell silent during the transfer", code="association-lost")
        return int(status)

    def outcome(self, path: Path) -> Outcome:
        """Send a file and put the answer into words."""
        status = None
        try:
            status = self.store(path if path.stat().st_size % 2 == 0 else _padded(path))
            return Outcome(path, status, judge(status, self._name) or "stored", True)
        except (Refused, Unavailable) as error:
            return Outcome(path, status, str(error), False)

    def __enter__(self) -> _Association:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lost:
            self.raw.abort()
        elif self.raw.is_established:
            self.raw.release()
