"""Every label and every message of the protocol, with its byte layout (`README.md`, "Messages").

A frame is the length of what follows (4 bytes), the kind of message (1 byte) and its fields in the order of the
class, without padding. Numbers are big-endian; vectors of ring elements are little-endian and take the rest of the
frame. How long that rest must be follows from the program and is checked by `Session.handle`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import ClassVar, Final

import numpy as np

from dicom_node.core.errors import IntegrityError, ProtocolError, Refused, Unavailable, VeilRayError

#: Stands in every key derivation: another version of the protocol shares no key with this one.
DOMAIN: Final = b"VeilRay dealt-2pc 1"
#: No frame is longer, whatever the program: 160 MiB, for the tables of EfficientNet-Lite0's widest ReLU6.
LARGEST_FRAME: Final = 160 << 20
LARGEST_PROGRAM: Final = 1 << 16
#: Room for a failure's code wherever a shorter message is expected.
LARGEST_FAILURE: Final = 64
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
    # Of the engine CrypTen; one party's shares, known to that party and the dealer.
    TUPLE_FIRST = 32  # a, a shared bit, or a truncation's mask
    TUPLE_SECOND = 33  # b, or a truncation's shifted mask
    TUPLE_RESULT = 34  # their product, the bit shared by sum, or a truncation's highest bit
    ZERO_SHARING = 35  # shares of zero, known to both parties


#: What may take tens of megabytes: neither writing nor reading it makes a copy. Read-only where it was read.
Vector = bytes | memoryview
KINDS: Final[dict[int, type[Message]]] = {}


@dataclass(frozen=True)
class Message:
    """Base of all messages; a class that gives its `kind` is one, and stands in `KINDS`.

    `fixed` is the layout of its fields but the open-ended one, which is the last (`struct`: ``16s`` is 16 bytes, B, H
    and I are numbers of 1, 2 and 4 bytes); by default that of `OfLayer`. A vector is called `values`.
    """

    KIND: ClassVar[int]
    FIXED: ClassVar[struct.Struct]
    COUNT: ClassVar[int]  # numbers and byte strings in FIXED, the kind included

    def __init_subclass__(cls, kind: int = 0, fixed: str = "16s H") -> None:
        if kind:
            cls.KIND, cls.FIXED, KINDS[kind] = kind, struct.Struct(f"> B {fixed}"), cls
            cls.COUNT = len(cls.FIXED.unpack(bytes(cls.FIXED.size)))

    def encode(self) -> bytes:
        """Write kind and fields; the length in front is the channel's."""
        return b"".join(self.parts())

    def parts(self) -> list[Vector]:
        """Give what `encode` would join: kind and fixed fields, and the open-ended field."""
        values = [self.KIND, *(getattr(self, one.name) for one in fields(self))]
        fixed, rest = tuple(values[: self.COUNT]), values[self.COUNT :]
        head = self.FIXED.pack(*fixed)
        if self.FIXED.unpack(head) != fixed:  # `struct` would cut bytes to length, or fill them up
            raise ValueError(f"a field of {type(self).__name__} has the wrong length")
        return [head, *rest]


@dataclass(frozen=True)
class OfBundle(Message):
    """Base of all messages about one bundle."""

    bundle: bytes


@dataclass(frozen=True)
class OfLayer(OfBundle):
    """Base of all messages about one layer, or one tensor, of a bundle's program."""

    layer: int
    values: Vector


@dataclass(frozen=True)
class Deal(Message, kind=1, fixed="32s 32s 32s"):
    """Party 0 asks the dealer for a bundle."""

    model: bytes  # SHA-256 of the model card
    party: bytes  # fingerprint of party 1's certificate
    sealing_key: bytes  # party 0's X25519 public key
    program: bytes  # JSON


@dataclass(frozen=True)
class Bundle(OfBundle, kind=2, fixed="16s 80s"):
    """The dealer's half for party 0."""

    sealed: bytes  # the seed; only party 0 can read it
    signed: bytes  # the manifest, the same as in `Half`


@dataclass(frozen=True)
class Open(OfBundle, kind=3, fixed="16s 32s 32s B"):
    """Party 0 announces to party 1 that it will use a bundle."""

    model: bytes
    manifest: bytes  # SHA-256: party 1 takes no other bundle of that name
    wants_delta: int  # 1 the first time under this weight mask


@dataclass(frozen=True)
class Fetch(OfBundle, kind=4, fixed="16s 32s 32s 32s"):
    """Party 1 asks the dealer for its half of a bundle."""

    model: bytes
    program: bytes  # SHA-256 of the program's JSON
    hospital: bytes  # fingerprint of party 0's certificate


@dataclass(frozen=True)
class Half(OfBundle, kind=5, fixed="16s 32s"):
    """The dealer's half for party 1, but for what follows as `Material`."""

    weight_mask_seed: bytes
    signed: bytes  # the manifest


@dataclass(frozen=True)
class Ready(OfBundle, kind=6, fixed="16s I"):
    """Party 1 holds its half and waits for the query."""

    lifetime_s: int
    values: Vector  # W - b of every layer, in order; empty unless asked for


class Masked(OfLayer, kind=7):
    """Party 0's masked share of a tensor that enters layers with weights."""


@dataclass(frozen=True)
class Output(OfBundle, kind=8, fixed="16s"):
    """Party 1's share of the output; only party 0 can open it."""

    values: Vector


class Material(OfLayer, kind=10):
    """The dealer's half for party 1 of one layer; follows `Half`, one for each layer that needs it."""


class Covered(OfLayer, kind=11):
    """Party 0's share of a gate's input under its mask R0; offline."""


class Shifted(OfLayer, kind=12):
    """Party 1 opens a gate's input under both masks."""


class Digits(OfLayer, kind=19):
    """Party 1's shares of the comparison's masked bits."""


class Bits(OfLayer, kind=13):
    """Party 0's shares of the comparison's masked bits and of the masked signs."""


class Signs(OfLayer, kind=14):
    """Party 1's shares of the masked signs."""


class Tops(OfLayer, kind=15):
    """Party 1 opens the highest bits of a truncation gate's input under both masks."""


@dataclass(frozen=True)
class Audit(OfBundle, kind=16, fixed="16s 32s"):
    """Party 0 opens a bundle that it will not use, once party 1 holds all of it."""

    seed: bytes


class Audited(OfBundle, kind=17, fixed="16s"):
    """Party 1 has made the bundle anew: the dealer dealt as it should."""


class Prepared(OfBundle, kind=18, fixed="16s"):
    """Party 1 has all covered shares: the query may come."""


@dataclass(frozen=True)
class TupleDeal(Message, kind=32, fixed="16s 32s 32s"):
    """Party 0 asks the dealer for a bundle of the engine CrypTen."""

    session: bytes  # party 0's own random bytes: masks are fresh even if the dealer's generator repeats
    model: bytes  # SHA-256 of the model card
    party: bytes  # fingerprint of party 1's certificate
    program: bytes  # JSON


@dataclass(frozen=True)
class TupleFetch(OfBundle, kind=33, fixed="16s 32s 32s 32s"):
    """Party 1 asks the dealer for its half of such a bundle."""

    model: bytes
    program: bytes  # SHA-256 of the program's JSON
    hospital: bytes  # fingerprint of party 0's certificate


@dataclass(frozen=True)
class TupleSeed(OfBundle, kind=34, fixed="16s 32s"):
    """The dealer's half for either party; party 1's is followed by `TupleCorrections`, one for each tuple."""

    seed: bytes


class TupleCorrections(OfLayer, kind=35):
    """What makes party 1's half of one tuple fit party 0's; the layer is the tuple's number."""


@dataclass(frozen=True)
class TupleOpen(OfBundle, kind=36, fixed="16s 32s 32s"):
    """Party 0 announces to party 1 a query on such a bundle."""

    model: bytes
    zero_seed: bytes  # of the sharings of zero, which both parties know


class TupleReady(OfBundle, kind=37, fixed="16s"):
    """Party 1 holds its half and waits for the query."""


class Exchange(OfLayer, kind=38):
    """A party's masked shares of one opening; the layer is the opening's number. The last one is of the output."""


@dataclass(frozen=True)
class Failure(Message, kind=9, fixed="B"):
    """Why the sender ends the exchange: a class of error and its code, never a text of the peer's."""

    reaction: int
    code: bytes

    _REACTIONS: ClassVar[dict[int, type[VeilRayError]]] = {
        1: ProtocolError,
        2: Unavailable,
        3: Refused,
        4: IntegrityError,
    }

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


def overhead(kind: type[Message]) -> int:
    """Return the length of a frame of this kind without its open-ended field."""
    return kind.FIXED.size


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
    if kind is None or len(frame) < kind.FIXED.size:
        raise ProtocolError("the peer sent a message of no known kind, or a part of one", code="malformed-message")
    names, rest = fields(kind), memoryview(frame)[kind.FIXED.size :].toreadonly()
    values = [*kind.FIXED.unpack_from(frame)[1:], rest if names[-1].name == "values" else bytes(rest)]
    if len(values) > len(names) and values.pop():  # all its fields are fixed
        raise ProtocolError("the peer sent a message that is too long", code="malformed-message")
    return kind(*values)
