"""DIMSE command sets and P-DATA fragments (PS3.7 Sections 6.3, 9.3 and Annex E; PS3.8 Annex E).

A command set is always implicit VR little endian, a dozen short elements long. Reading and writing it here, without a
data set object, costs microseconds where a general library costs milliseconds per instance.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..core.errors import ProtocolError

C_STORE, C_ECHO, C_CANCEL = 0x0001, 0x0030, 0x0FFF
RESPONSE = 0x8000
NO_DATA_SET = 0x0101
SUCCESS, UNRECOGNISED_OPERATION = 0x0000, 0x0211
LONGEST_COMMAND = 64 * 1024
_AFFECTED_CLASS, _REQUESTED_CLASS, _FIELD, _MESSAGE_ID, _RESPONDED_TO = 0x0002, 0x0003, 0x0100, 0x0110, 0x0120
_DATA_SET_TYPE, _STATUS, _COMMENT, _AFFECTED_INSTANCE = 0x0800, 0x0900, 0x0902, 0x1000


@dataclass(frozen=True)
class Command:
    """The part of a request's command set that this node acts on."""

    field: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_data_set: bool


def decode(encoded: bytes | bytearray) -> Command:
    """Read a request's command set.

    Raises
    ------
    ProtocolError
        It is not a command set, or is not a request.
    """
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if len(encoded) - at < 8:
            raise ProtocolError("a command set ends inside an element")
        group, element, length = struct.unpack_from("<HHI", encoded, at)
        at += 8
        if group != 0 or length > len(encoded) - at:
            raise ProtocolError("a command set holds something else")
        elements[element] = bytes(encoded[at : at + length])
        at += length
    field = _number(elements, _FIELD)
    if field & RESPONSE:
        raise ProtocolError("the peer answered a request that was never made")
    return Command(
        field=field,
        message_id=_number(elements, _RESPONDED_TO if field == C_CANCEL else _MESSAGE_ID),
        sop_class_uid=_text(elements, _AFFECTED_CLASS) or _text(elements, _REQUESTED_CLASS),
        sop_instance_uid=_text(elements, _AFFECTED_INSTANCE),
        has_data_set=_number(elements, _DATA_SET_TYPE) != NO_DATA_SET,
    )


def response(request: Command, status: int, comment: str = "") -> bytes:
    """Write the command set that answers `request`.

    Parameters
    ----------
    status : int
        Status (0000,0900).
    comment : str
        Error Comment (0000,0902), cut to its 64 characters.
    """
    body = _element(_AFFECTED_CLASS, _uid(request.sop_class_uid)) if request.sop_class_uid else b""
    body += _element(_FIELD, struct.pack("<H", request.field | RESPONSE))
    body += _element(_RESPONDED_TO, struct.pack("<H", request.message_id))
    body += _element(_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET))
    body += _element(_STATUS, struct.pack("<H", status))
    if comment:
        text = comment.encode("ascii", "replace")[:64].replace(b"\\", b"/")
        body += _element(_COMMENT, text + b" " * (len(text) % 2))
    if request.sop_instance_uid:
        body += _element(_AFFECTED_INSTANCE, _uid(request.sop_instance_uid))
    return _element(0x0000, struct.pack("<I", len(body))) + body


def command_pdus(command: bytes, context_id: int, maximum_length: int) -> bytes:
    """Cut a command set into P-DATA-TF PDUs whose length is at most the peer's `maximum_length` (0: no limit)."""
    room = len(command) if maximum_length == 0 else max(1, maximum_length - 6)
    out = bytearray()
    for start in range(0, len(command), room):
        part = command[start : start + room]
        last = start + room >= len(command)
        out += struct.pack(">BxIIBB", 0x04, len(part) + 6, len(part) + 2, context_id, 0b11 if last else 0b01) + part
    return bytes(out)


def fragments(body: memoryview) -> Iterator[tuple[int, bool, bool, memoryview]]:
    """Yield context ID, is-command, is-last and content of each presentation data value in a P-DATA-TF PDU.

    Raises
    ------
    ProtocolError
        A length contradicts the PDU's.
    """
    at = 0
    while at < len(body):
        if len(body) - at < 6:
            raise ProtocolError("a P-DATA PDU ends inside a presentation data value")
        length, context_id, control = struct.unpack_from(">IBB", body, at)
        if length < 2 or length > len(body) - at - 4:
            raise ProtocolError("a presentation data value is longer than its PDU")
        yield context_id, bool(control & 1), bool(control & 2), body[at + 6 : at + 4 + length]
        at += 4 + length


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def _uid(text: str) -> bytes:
    encoded = text.encode("ascii", "replace")
    return encoded + b"\0" * (len(encoded) % 2)


def _number(elements: dict[int, bytes], element: int) -> int:
    value = elements.get(element, b"")
    if len(value) != 2:
        raise ProtocolError(f"a command set has no (0000,{element:04X})")
    return int.from_bytes(value, "little")


def _text(elements: dict[int, bytes], element: int) -> str:
    return elements.get(element, b"")[:128].strip(b"\0 ").decode("ascii", "replace")
