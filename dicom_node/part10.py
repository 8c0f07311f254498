"""The little of PS3.5 and PS3.10 that receiving needs: a file's meta information and a data set's identity.

Nothing here decodes values, recurses, or looks further than the four UIDs, so that no data set, however large or
broken, costs more than its header. Everything that a data set can do wrong ends in `RejectedInstance`.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from . import uids
from .core.errors import RejectedInstance

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99"})
IMPLEMENTATION_CLASS_UID = uids.derive("VeilRay implementation class")
IMPLEMENTATION_VERSION_NAME = "VEILRAY"

#: C-STORE statuses (PS3.4 Table B.2-1, PS3.7 Annex C).
INVALID_INSTANCE, SOP_CLASS_NOT_SUPPORTED, DOES_NOT_MATCH, CANNOT_UNDERSTAND = 0x0117, 0x0122, 0xA900, 0xC000

_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_WANTED = {_SOP_CLASS: "SOP Class", _SOP_INSTANCE: "SOP Instance", _STUDY: "Study Instance", _SERIES: "Series Instance"}
_PIXELS = 0x7FE00000
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
#: Laxer than PS3.5 Section 9.1: components with leading zeros occur in practice and harm nothing.
_UID = re.compile(rb"[0-9]+(\.[0-9]+)*")


class Truncated(Exception):
    """The bytes at hand end before the identity is known; more of the data set may tell it."""


@dataclass(frozen=True)
class Identity:
    """What a data set says it is."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


def encode_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble, prefix and File Meta Information of a file whose data set follows (PS3.10 Section 7.1)."""
    body = struct.pack("<HH2sHI2s", 2, 1, b"OB", 0, 2, b"\0\1")
    for element, vr, text in (
        (0x0002, b"UI", sop_class_uid),
        (0x0003, b"UI", sop_instance_uid),
        (0x0010, b"UI", transfer_syntax_uid),
        (0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
    ):
        value = text.encode("ascii")
        value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        body += struct.pack("<HH2sH", 2, element, vr, len(value)) + value
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body


def data_set(content: bytes | memoryview) -> tuple[str, int]:
    """Find the data set inside the beginning of a file.

    Laxer than PS3.10: a missing preamble and a wrong group length are tolerated, as archives hold such files.

    Returns
    -------
    tuple of str and int
        Transfer Syntax UID and the offset of the data set, bytes.

    Raises
    ------
    RejectedInstance
        There is no File Meta Information that names a transfer syntax.
    """
    view = memoryview(content)
    at = 132 if bytes(view[128:132]) == b"DICM" else 0
    syntax = ""
    try:
        while len(view) - at >= 8 and bytes(view[at : at + 2]) == b"\2\0":
            tag, length, value = _explicit_header(view, at, "<")
            if length > len(view) - value:
                raise Truncated
            if tag == 0x00020010:
                syntax = bytes(view[value : value + length]).rstrip(b"\0 ").decode("ascii", "replace")
            at = value + length
    except Truncated:
        syntax = ""
    if not _UID.fullmatch(syntax.encode()):
        raise RejectedInstance(
            "the file has no File Meta Information that names its transfer syntax: send it by C-STORE instead",
            status=CANNOT_UNDERSTAND,
            code="no-file-meta",
        )
    return syntax, at


def identify(content: bytes | memoryview, transfer_syntax_uid: str, *, whole: bool) -> Identity:
    """Read the four UIDs of a data set.

    Parameters
    ----------
    content : bytes
        The encoded data set or its beginning.
    transfer_syntax_uid : str
        How it is encoded.
    whole : bool
        Whether nothing follows `content`.

    Raises
    ------
    Truncated
        `content` ends before the last of them, and more may follow.
    RejectedInstance
        A UID is absent (0xC000) or malformed (0x0117), or the encoding is broken (0xC000).
    """
    if transfer_syntax_uid in DEFLATED:
        try:
            # Bounded: a few kilobytes may inflate to gigabytes.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, max(1 << 20, len(content)))
        except zlib.error as error:
            raise _broken("the deflated data set cannot be inflated") from error
    found: dict[int, bytes] = {}
    try:
        _scan(memoryview(content), transfer_syntax_uid, found)
    except Truncated:
        if not whole:
            raise
    values = []
    for tag, name in _WANTED.items():
        value = found.get(tag, b"").strip(b"\0 ")
        if not value:
            raise _broken(f"the data set has no {name} UID", code="uid-missing")
        if len(value) > 64 or not _UID.fullmatch(value):
            raise RejectedInstance(
                f"the {name} UID is not a valid UID (PS3.5 9.1)", status=INVALID_INSTANCE, code="uid-invalid"
            )
        values.append(value.decode())
    return Identity(*values)


def is_uid(text: str) -> bool:
    """Tell whether `text` may serve as a UID."""
    return len(text) <= 64 and _UID.fullmatch(text.encode("ascii", "replace")) is not None


def _broken(message: str, code: str = "unreadable") -> RejectedInstance:
    return RejectedInstance(message, status=CANNOT_UNDERSTAND, code=code)


def _scan(view: memoryview, transfer_syntax_uid: str, found: dict[int, bytes]) -> None:
    """Walk the elements of the top level until the four UIDs are found or the pixels begin."""
    order = ">" if transfer_syntax_uid == EXPLICIT_BIG else "<"
    # Some senders label implicit as explicit and the other way round; the first element's VR tells the truth.
    implicit = bytes(view[4:6]) not in _SHORT_VRS | _LONG_VRS
    at = 0
    inner: list[bool] = []  # one entry per open sequence or item of undefined length: is its content implicit?
    while at < len(view) and len(found) < len(_WANTED):
        form = inner[-1] if inner else implicit
        tag, length, value = (_implicit_header if form else _explicit_header)(view, at, order)
        at = value
        if tag in (_ITEM_END, _SEQUENCE_END):
            if not inner:
                raise _broken("a sequence ends that never began")
            inner.pop()
        elif length == _UNDEFINED:
            if tag >= _PIXELS and tag != _ITEM and not inner:
                return
            # An UN of undefined length holds implicit little endian items (PS3.5 Section 6.2.2 note 3).
            unknown = tag != _ITEM and not form and bytes(view[value - 8 : value - 6]) == b"UN"
            inner.append(form or unknown)
        else:
            if not inner:
                if tag >= _PIXELS:
                    return
                if tag in _WANTED and tag not in found and value + length <= len(view):
                    found[tag] = bytes(view[value : value + min(length, 256)])
            at = value + length
    if len(found) < len(_WANTED):
        raise Truncated


def _implicit_header(view: memoryview, at: int, order: str) -> tuple[int, int, int]:
    if len(view) - at < 8:
        raise Truncated
    group, element, length = struct.unpack_from(order + "HHI", view, at)
    return group << 16 | element, length, at + 8


def _explicit_header(view: memoryview, at: int, order: str) -> tuple[int, int, int]:
    """Return tag, length of the value and where it begins (PS3.5 Section 7.1.2)."""
    if len(view) - at < 8:
        raise Truncated
    group, element, vr, short = struct.unpack_from(order + "HH2sH", view, at)
    if group == 0xFFFE:
        return _implicit_header(view, at, order)
    if vr in _LONG_VRS:
        if len(view) - at < 12:
            raise Truncated
        return group << 16 | element, struct.unpack_from(order + "I", view, at + 8)[0], at + 12
    if vr not in _SHORT_VRS:
        raise _broken("an element of the header has no known VR")
    return group << 16 | element, short, at + 8
