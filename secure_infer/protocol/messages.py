"""Every label and every message of the protocol, with its byte layout (`README.md`, "Messages").

A frame is the length of what follows (4 bytes), the kind of message (1 byte) and its fields in the order of the
class, without padding. Numbers are big-endian; vectors of ring elements are little-endian and take the rest of the
frame. How long that rest must be follows from the program and is checked by whoever reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Final, NamedTuple, get_args, get_type_hints

import numpy as np

from dicom_node.core.errors import ProtocolError, Refused, Unavailable, VeilRayError

#: Stands in every key derivation: another version of the protocol shares no key with this one.
DOMAIN: Final = b"VeilRay dealt-2pc 1"
#: No frame is longer, whatever the program: 64 MiB.
LARGEST_FRAME: Final = 1 << 26
#: But one layer of a network may take 128 MiB.
LARGEST_LAYER: Final = 1 << 27
LARGEST_PROGRAM: Final = 1 << 16
#: What memory from NumPy is a multiple of, bytes.
ALIGNMENT: Final = 16


class Label(IntEnum):
    """Names of the pseudo-random streams; each is a counter space of its own under its key."""

    INPUT_MASK = 1  # r, known to dealer and party 0
    OUTPUT_MASK = 2  # k0, known to dealer and party 0
    WEIGHT_MASK = 3  # b, known to dealer and party 1
    GATE_TABLES = 4  # party 0's shares of a gate's tables, known to dealer and party 0
    GATE_MASK = 5  # R0, known to dealer and party 0
    PARTY_GATE_MASK = 6  # R1, known to dealer and party 1
    GATE_BITS = 7  # the masks of the opened bits, known to the dealer alone


#: What may take tens of megabytes: neither writing nor reading it makes a copy. Read-only where it was read.
Vector = bytes | memoryview


@dataclass(frozen=True)
class Message:
    """Base of all messages; a field is annotated with its length, and one without takes the rest of the frame."""

    KIND: ClassVar[int]

    def encode(self) -> bytes:
        """Write kind and fields; the length in front is the channel's."""
        return b"".join(self.parts())

    def parts(self) -> list[Vector]:
        """Give what `encode` would join: kind and fields."""
        parts: list[Vector] = [bytes([self.KIND])]
        for one in LAYOUTS[self.KIND]:
            value = getattr(self, one.name)
            if one.is_number:
                value = value.to_bytes(one.size, "big")
            if one.size is not None and len(value) != one.size:
                raise ValueError(f"{type(self).__name__}.{one.name} must be {one.size} bytes")
            parts.append(value)
        return parts


class Slot(NamedTuple):
    """Where one field of a message stands."""

    name: str
    size: int | None
    is_number: bool
    is_vector: bool


@dataclass(frozen=True)
class Deal(Message):
    """Party 0 asks the dealer for a bundle."""

    KIND = 1
    session: Annotated[bytes, 16]  # party 0's own random bytes: masks are fresh even if the dealer's generator repeats
    model: Annotated[bytes, 32]  # SHA-256 of the model card
    party: Annotated[bytes, 32]  # fingerprint of party 1's certificate
    program: bytes  # JSON


@dataclass(frozen=True)
class Bundle(Message):
    """The dealer's half for party 0."""

    KIND = 2
    bundle: Annotated[bytes, 16]
    seed: Annotated[bytes, 32]
    weight_mask_id: Annotated[bytes, 16]  # which b this bundle belongs to; tells nothing about b


@dataclass(frozen=True)
class Open(Message):
    """Party 0 announces to party 1 that it will use a bundle."""

    KIND = 3
    bundle: Annotated[bytes, 16]
    model: Annotated[bytes, 32]
    wants_delta: Annotated[int, 1]  # 1 the first time under this weight mask


@dataclass(frozen=True)
class Fetch(Message):
    """Party 1 asks the dealer for its half of a bundle."""

    KIND = 4
    bundle: Annotated[bytes, 16]
    model: Annotated[bytes, 32]
    program: Annotated[bytes, 32]  # SHA-256 of the program's JSON
    hospital: Annotated[bytes, 32]  # fingerprint of party 0's certificate


@dataclass(frozen=True)
class Half(Message):
    """The dealer's half for party 1."""

    KIND = 5
    bundle: Annotated[bytes, 16]
    weight_mask_seed: Annotated[bytes, 32]
    corrections: Vector  # c of every layer, in order


@dataclass(frozen=True)
class Ready(Message):
    """Party 1 holds its half and waits for the query."""

    KIND = 6
    bundle: Annotated[bytes, 16]
    lifetime_s: Annotated[int, 4]
    deltas: Vector  # W - b of every layer, in order; empty unless asked for


@dataclass(frozen=True)
class Masked(Message):
    """Party 0's masked share of a layer's input."""

    KIND = 7
    bundle: Annotated[bytes, 16]
    layer: Annotated[int, 2]
    values: Vector


@dataclass(frozen=True)
class Output(Message):
    """Party 1's share of the output; only party 0 can open it."""

    KIND = 8
    bundle: Annotated[bytes, 16]
    values: Vector


@dataclass(frozen=True)
class Material(Message):
    """The dealer's half for party 1 of one layer of a network; follows `Half`, one for each layer that needs it."""

    KIND = 10
    bundle: Annotated[bytes, 16]
    layer: Annotated[int, 2]
    values: Vector


@dataclass(frozen=True)
class Covered(Message):
    """Party 0's share of a gate's input under its mask R0; offline."""

    KIND = 11
    bundle: Annotated[bytes, 16]
    layer: Annotated[int, 2]
    values: Vector


@dataclass(frozen=True)
class Shifted(Message):
    """Party 1 opens a gate's input under both masks, and gives its shares of the comparison's masked bits."""

    KIND = 12
    bundle: Annotated[bytes, 16]
    layer: Annotated[int, 2]
    values: Vector


@dataclass(frozen=True)
class Bits(Message):
    """Party 0's shares of the comparison's masked bits and of the masked signs."""

    KIND = 13
    bundle: Annotated[bytes, 16]
    layer: Annotated[int, 2]
    values: Vector


@dataclass(frozen=True)
class Signs(Message):
    """Party 1's shares of the masked signs."""

    KIND = 14
    bundle: Annotated[bytes, 16]
    layer: Annotated[int, 2]
    values: Vector


@dataclass(frozen=True)
class Tops(Message):
    """Party 1 opens the highest bits of a truncation gate's input under both masks."""

    KIND = 15
    bundle: Annotated[bytes, 16]
    layer: Annotated[int, 2]
    values: Vector


@dataclass(frozen=True)
class Failure(Message):
    """Why the sender ends the exchange: a class of error and its code, never a text of the peer's."""

    KIND = 9
    reaction: Annotated[int, 1]
    code: bytes

    _REACTIONS: ClassVar[dict[int, type[VeilRayError]]] = {1: ProtocolError, 2: Unavailable, 3: Refused}

    @classmethod
    def of(cls, error: VeilRayError) -> Failure:
        """Tell the peer about `error` without its text."""
        reaction = next((number for number, kind in cls._REACTIONS.items() if isinstance(error, kind)), 2)
        return cls(reaction, error.code.encode())

    def error(self, peer: str) -> VeilRayError:
        """Give the error that the peer reported, as ours."""
        kind = self._REACTIONS.get(self.reaction)
        if kind is None or not re.fullmatch(rb"[a-z0-9-]{1,48}", self.code):
            return ProtocolError(f"{peer} sent a malformed failure", code="malformed-message")
        code = self.code.decode()
        return kind(f"{peer} ended the exchange: {code}", code=code)


KINDS: Final[dict[int, type[Message]]] = {
    kind.KIND: kind
    for kind in (
        Deal, Bundle, Open, Fetch, Half, Ready, Masked, Output, Failure, Material, Covered, Shifted, Bits, Signs,
        Tops,
    )
}  # fmt: skip


def _layout(kind: type[Message]) -> tuple[Slot, ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for one in fields(kind):
        size = next(iter(getattr(hints[one.name], "__metadata__", ())), None)
        kinds = get_args(hints[one.name]) or (bytes,)
        found.append(Slot(one.name, size, kinds[0] is int, memoryview in kinds))
    return tuple(found)


#: Read off the annotations once.
LAYOUTS: Final = {number: _layout(kind) for number, kind in KINDS.items()}


def overhead(kind: type[Message]) -> int:
    """Return the length of a frame of this kind without its open-ended field."""
    return 1 + sum(one.size for one in LAYOUTS[kind.KIND] if one.size is not None)


def room(kind: int, size: int) -> memoryview:
    """Make room for a frame so that its vector will begin where every processor reads words fast."""
    lead = -overhead(KINDS[kind]) % ALIGNMENT if kind in KINDS else 0
    # NumPy asks for large pages, which the kernel hands out several times faster than small ones.
    return np.empty(lead + size, np.uint8)[lead:].data


def decode(frame: Vector) -> Message:
    """Read a message; the inverse of `Message.encode`. Its vector, if it has one, is a view of the frame.

    Raises
    ------
    ProtocolError
        Unknown kind, or too few or too many bytes (``malformed-message``).
    """
    kind = KINDS.get(frame[0]) if frame else None
    if kind is None:
        raise ProtocolError("the peer sent a message of no known kind", code="malformed-message")
    view = memoryview(frame).toreadonly()
    values: list[Any] = []
    position = 1
    for one in LAYOUTS[kind.KIND]:
        size = len(frame) - position if one.size is None else one.size
        part = view[position : position + size]
        position += size
        if len(part) != size:
            raise ProtocolError("the peer sent a truncated message", code="malformed-message")
        values.append(int.from_bytes(part, "big") if one.is_number else part if one.is_vector else bytes(part))
    if position != len(frame):
        raise ProtocolError("the peer sent a message that is too long", code="malformed-message")
    return kind(*values)
