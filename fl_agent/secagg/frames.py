"""Frames: how a message is wrapped and signed (`README.md`, "Messages"; Ed25519, RFC 8032).

A frame is version (1 byte), kind (1), sender (2; 0 is the coordinator, else the position in the cohort from 1), round
(32, the hash of the signed header), length of the body (4), body, and the sender's signature (64) over all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dicom_node.core.errors import ProtocolError

from .messages import (
    KINDS,
    LARGEST_BODY,
    SIGNATURE,
    Buffer,
    KeyList,
    Label,
    Message,
    UserEntry,
    labelled,
    list_bytes,
    malformed,
    pack,
)

VERSION: Final = 1
ENVELOPE: Final = Struct(">BBH32sI")


class Outgoing(NamedTuple):
    """A frame to carry, and to whom: 0 is the coordinator, else a position in the cohort."""

    to: int
    frame: Buffer


class Frame(NamedTuple):
    """A frame taken apart; nothing of it is verified before `verify`."""

    kind: type[Message]
    sender: int
    round_id: bytes
    body: memoryview
    signed: bytes
    signature: bytes

    def verify(self, key: bytes) -> None:
        """Check the signature against the sender's pinned identity.

        Raises
        ------
        ProtocolError
            It does not fit (``bad-signature``).
        """
        verify(key, self.signature, self.signed)

    def message(self) -> Message:
        """Read the body."""
        return self.kind.decode(self.body)


def room_for(kind: type[Message], sender: int, round_id: bytes, size: int, buffer: memoryview) -> memoryview:
    """Write the envelope of a frame into `buffer` and return the part that takes its body of `size` bytes."""
    buffer[: ENVELOPE.size] = pack(ENVELOPE, VERSION, kind.KIND, sender, round_id, size)
    return buffer[ENVELOPE.size : ENVELOPE.size + size]


def seal_frame(buffer: memoryview, identity: Ed25519PrivateKey) -> None:
    """Sign a frame whose envelope and body are written; the signature takes the last 64 bytes of `buffer`."""
    buffer[-SIGNATURE:] = identity.sign(_statement(buffer))


def frame_size(body: int) -> int:
    """Return the length of a frame, in bytes, whose body has `body` bytes."""
    return ENVELOPE.size + body + SIGNATURE


def frame(message: Message, sender: int, round_id: bytes, identity: Ed25519PrivateKey) -> bytes:
    """Write and sign a frame."""
    body = message.encode()
    buffer = bytearray(frame_size(len(body)))
    room_for(type(message), sender, round_id, len(body), memoryview(buffer))[:] = body
    seal_frame(memoryview(buffer), identity)
    return bytes(buffer)


def open_frame(data: Buffer) -> Frame:
    """Take a frame apart without believing it.

    Raises
    ------
    ProtocolError
        Of another version, of no known kind, truncated or too long (``malformed``).
    """
    view = memoryview(data).cast("B")
    if len(view) < frame_size(0):
        raise malformed("a truncated frame")
    version, number, sender, round_id, size = ENVELOPE.unpack(view[: ENVELOPE.size])
    kind = KINDS.get(number)
    if version != VERSION or kind is None:
        raise malformed("a frame of another version or of no known kind")
    if size > LARGEST_BODY or len(view) != frame_size(size):
        raise malformed("a frame whose length is not the one it states")
    body = view[ENVELOPE.size : ENVELOPE.size + size]
    return Frame(kind, sender, round_id, body, _statement(view), bytes(view[-SIGNATURE:]))


def _statement(view: memoryview) -> bytes:
    # The body is hashed first: Ed25519 would read 47 MB twice, by the slower SHA-512.
    body = hashlib.sha256(view[ENVELOPE.size : -SIGNATURE]).digest()
    return labelled(Label.FRAME, bytes(view[: ENVELOPE.size]), body)


def keys_statement(round_id: bytes, user: int, c_pk: bytes, s_pk: bytes) -> bytes:
    """Return what σ_u signs."""
    return labelled(Label.ADVERTISED_KEYS, round_id, user.to_bytes(2, "big"), c_pk, s_pk)


def survivors_statement(round_id: bytes, keys: KeyList, shared: Iterable[int], survivors: Iterable[int]) -> bytes:
    """Return what σ'_u signs: U3, and, stricter than the paper, also U1 with its keys and U2."""
    lists = [list_bytes([UserEntry(user) for user in sorted(users)], UserEntry) for users in (shared, survivors)]
    return labelled(Label.SURVIVORS, round_id, hashlib.sha256(keys.encode()).digest(), *lists)


def verify(key: bytes, signature: bytes, statement: bytes) -> None:
    """Check an Ed25519 signature (RFC 8032), or raise ProtocolError (``bad-signature``)."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise ProtocolError(
            "a signature does not fit the pinned identity; compare the roster's keys with their owners",
            code="bad-signature",
        ) from error
