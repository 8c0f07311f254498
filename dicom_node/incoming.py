"""One data set on its way into the store: hashed while it is written, identified by its header alone."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from . import part10
from .core.errors import RejectedInstance, Unavailable
from .durable import TemporaryFile
from .part10 import Identity

#: The header is read from memory when it fits into this, and from the file otherwise.
HEADER_BYTES = 64 * 1024
#: No header is longer: what holds its UIDs behind more bytes than this is not read on.
LONGEST_HEADER_BYTES = 32 * 1024 * 1024


def content_hash(transfer_syntax_uid: str, content: bytes | memoryview = b"") -> hashlib._Hash:
    """Hash of an instance's content: its encoding's name and its encoded data set.

    File Meta Information is left out, so a resend through another sender is the same content; the transfer syntax is
    kept in, because the bytes mean something else under another one.
    """
    digest = hashlib.sha256(transfer_syntax_uid.encode() + b"\0")
    digest.update(content)
    return digest


class Incoming:
    """A data set on its way into the store: feed it with `write`, then hand it to `Store.receive` or `discard` it.

    The file is locked while its writer lives, so that another process's `Store.recover` leaves it alone.
    """

    def __init__(
        self, folder: Path, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, maximum: int
    ) -> None:
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.size = 0
        self._maximum = maximum
        self._header = bytearray()
        self._identity: Identity | None = None
        self._hash = content_hash(transfer_syntax_uid)
        self._file = TemporaryFile(folder)
        self._offset = 0
        meta = part10.encode_meta(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        try:
            self._file.write(meta)
        except Unavailable:
            self.discard()
            raise
        self._offset = len(meta)

    @property
    def sha256(self) -> str:
        """Hash of what was written so far."""
        return self._hash.hexdigest()

    def write(self, fragment: bytes | memoryview) -> None:
        """Append encoded bytes of the data set.

        Raises
        ------
        RejectedInstance
            It is longer than the store takes (0xC000).
        Unavailable
            The disk is full or failing.
        """
        if self.size + len(fragment) > self._maximum:
            raise RejectedInstance(
                "the data set is longer than scp.maximum_instance_bytes",
                status=part10.CANNOT_UNDERSTAND,
                code="too-large",
            )
        if len(self._header) < HEADER_BYTES:
            self._header += fragment[: HEADER_BYTES - len(self._header)]
        self._file.write(fragment)
        self._hash.update(fragment)
        self.size += len(fragment)

    def identity(self) -> Identity:
        """Read the UIDs of the whole data set and compare them with those announced.

        Raises
        ------
        RejectedInstance
            They differ (0xA900), or see `part10.identify`.
        """
        if self.early_identity() is None:
            content = self._file.read(LONGEST_HEADER_BYTES, self._offset)
            self._identity = part10.identify(content, self.transfer_syntax_uid, whole=True)
        found = self._identity
        assert found is not None
        if (found.sop_class_uid, found.sop_instance_uid) != (self.sop_class_uid, self.sop_instance_uid):
            raise RejectedInstance(
                "SOP Class or SOP Instance UID of the data set differ from those announced",
                status=part10.DOES_NOT_MATCH,
                code="uid-mismatch",
            )
        return found

    def early_identity(self) -> Identity | None:
        """Return the identity if what has arrived so far tells it."""
        if self._identity is None:
            with contextlib.suppress(part10.Truncated):
                self._identity = part10.identify(bytes(self._header), self.transfer_syntax_uid, whole=False)
        return self._identity

    def settle(self, path: Path) -> None:
        """Make the file durable under its final name."""
        self._file.settle(path, self._offset + self.size)

    def discard(self) -> None:
        """Remove the temporary file; harmless when it is settled."""
        self._file.discard()
