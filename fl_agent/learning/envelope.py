"""Signed frames around a run: its plan, the opening of each round, its end, and what a site says to them.

::

    envelope = mark 1 ‖ kind 1 ‖ run 16 ‖ body ‖ Ed25519 signature 64

Numbers are big-endian. A frame of secure aggregation travels beside these as it is; its first byte is another.
An answer holds the hash of the question, so a courier cannot give an old answer to a new question.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core.errors import ProtocolError

from ..secagg.frames import verify

#: No version of a frame of secure aggregation.
MARK: Final = 0x56
DOMAIN: Final = b"VeilRay federation 1\n"
RUN, SIGNATURE, DIGEST = 16, 64, 32
_START: Final = Struct(f">BB{RUN}s")
_LENGTH: Final = Struct(">I")

#: What a code of an error looks like.
CODE: Final = re.compile("[a-z][a-z-]{0,39}")


class Kind(IntEnum):
    """What a frame says."""

    PLAN = 1  # coordinator: the canonical bytes of a plan
    ROUND = 2  # coordinator: length of the state (4), the state, a RoundHeader frame
    END = 3  # coordinator: the run is over
    ACCEPTED = 4  # site: the hash of the question
    REFUSED = 5  # site: the hash of the question, and the code of the reason in ASCII


@dataclass(frozen=True)
class Envelope:
    """A frame.

    Attributes
    ----------
    kind : Kind
    run : bytes
        16 bytes.
    body : bytes
    """

    kind: Kind
    run: bytes
    body: bytes = b""

    def sealed(self, identity: Ed25519PrivateKey) -> bytes:
        """Sign it."""
        start = _START.pack(MARK, self.kind, self.run)
        return start + self.body + identity.sign(_statement(start, self.body))


def is_envelope(frame: bytes) -> bool:
    """Tell an envelope from a frame of secure aggregation."""
    return frame[:1] == bytes([MARK])


def opened(frame: bytes, key: bytes) -> Envelope:
    """Verify and read an envelope.

    Parameters
    ----------
    frame : bytes
    key : bytes
        The sender's pinned identity.

    Raises
    ------
    ProtocolError
        Truncated or of no known kind (``malformed``), or not the sender's (``bad-signature``).
    """
    if not is_envelope(frame) or len(frame) < _START.size + SIGNATURE:
        raise _malformed()
    start, body, signature = frame[: _START.size], frame[_START.size : -SIGNATURE], frame[-SIGNATURE:]
    verify(key, signature, _statement(start, body))
    _, kind, run = _START.unpack(start)
    if kind not in set(Kind):
        raise _malformed()
    return Envelope(Kind(kind), run, body)


def opening(run: bytes, state: bytes, header_frame: bytes) -> Envelope:
    """Put a round's state beside its header."""
    return Envelope(Kind.ROUND, run, _LENGTH.pack(len(state)) + state + header_frame)


def read_opening(envelope: Envelope) -> tuple[bytes, bytes]:
    """Return state and RoundHeader frame of an opening; ProtocolError where it holds none (``malformed``)."""
    if len(envelope.body) < _LENGTH.size:
        raise _malformed()
    (length,) = _LENGTH.unpack_from(envelope.body)
    rest = envelope.body[_LENGTH.size :]
    if len(rest) < length:
        raise _malformed()
    return rest[:length], rest[length:]


def answer(kind: Kind, question: bytes, run: bytes, code: str = "") -> Envelope:
    """Answer a frame."""
    return Envelope(kind, run, hashlib.sha256(question).digest() + code.encode("ascii"))


def read_answer(envelope: Envelope, question: bytes) -> str:
    """Return an answer's code, empty where the site accepts.

    Raises
    ------
    ProtocolError
        It is an answer to something else (``wrong-answer``).
    """
    kinds = {Kind.ACCEPTED, Kind.REFUSED}
    if envelope.kind not in kinds or envelope.body[:DIGEST] != hashlib.sha256(question).digest():
        raise ProtocolError("a site's answer belongs to another question", code="wrong-answer")
    code = envelope.body[DIGEST:].decode("ascii", "replace")
    if envelope.kind is Kind.ACCEPTED:
        return ""
    # A site's text goes to the coordinator's log, records and report: nothing but a code may.
    return code if CODE.fullmatch(code) else "refused"


def _statement(start: bytes, body: bytes) -> bytes:
    return DOMAIN + start + hashlib.sha256(body).digest()


def _malformed() -> ProtocolError:
    return ProtocolError("a frame that cannot be read came; compare the versions", code="malformed")
