"""The header of a compressed frame: SIZ of JPEG 2000 (ISO 15444-1 A.5.1), SOF of JPEG (10918-1 B.2.2) and JPEG-LS."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import Refused

JP2_BOXES = (
    4096  # bytes that a JP2 file header, which PS3.5 A.4.4 forbids but senders write, may take before the stream
)


@dataclass(frozen=True)
class CodeStream:
    """What a JPEG, JPEG-LS or JPEG 2000 code stream says about itself: sizes in pixels, precision in bits."""

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool


def code_stream(frame: bytes) -> CodeStream:
    """Read the header of one encoded frame, decoding nothing.

    Raises
    ------
    Refused
        There is no such header.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, JP2_BOXES)
    if start >= 0 and len(frame) >= start + 43:
        right, bottom, left, top = (int.from_bytes(frame[start + at : start + at + 4]) for at in (8, 12, 16, 20))
        depth = frame[start + 42]
        components = int.from_bytes(frame[start + 40 : start + 42])
        return CodeStream(bottom - top, right - left, components, (depth & 0x7F) + 1, bool(depth & 0x80))
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
            return CodeStream(rows, columns, frame[at + 9], frame[at + 4], False)
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    raise Refused("the compressed image has no readable header: the stream is broken", code="broken-pixel-data")
