"""Every label and message of secure aggregation, with its byte layout (`README.md`, "Messages"; Bonawitz et al. 2017).

Numbers are big-endian, ring elements little-endian. A list is its length (2 bytes) and its entries, ascending by user
and each user once: one content has one encoding. `frames` wraps and signs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, ClassVar, Final, NamedTuple, Self

from dicom_node.core.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

#: Stands in every signature and key derivation: another version of the protocol shares nothing with this one.
DOMAIN: Final = b"VeilRay SecAgg 1"
COORDINATOR: Final = 0
LARGEST_COHORT: Final = 1000
#: No body is longer, whatever the header says: 1 GiB.
LARGEST_BODY: Final = 1 << 30

KEY: Final = 32
SIGNATURE: Final = 64
NONCE: Final = 12
#: An element of the field of `shamir`.
SHARE: Final = 33


class Label(IntEnum):
    """What a signature or a derived key is for; no two purposes share one."""

    FRAME = 1
    ADVERTISED_KEYS = 2  # σ_u
    SURVIVORS = 3  # σ'_u
    CHANNEL = 4  # key that seals the shares from one client to another
    PAIRWISE_MASK = 5  # p_{u,v}
    SELF_MASK = 6  # p_u
    COMMITMENT = 7  # to b_u


class Secret(IntEnum):
    """Which of a peer's two secrets a share belongs to."""

    SELF_MASK = 1  # b_u, of a peer whose masked input is in the sum
    KEY = 2  # s_u^SK, of a peer who dropped out before


class KeyEntry(NamedTuple):
    """A client's advertised keys: c^PK seals shares, s^PK agrees on masks."""

    user: int
    c_pk: bytes
    s_pk: bytes
    signature: bytes


class SealedEntry(NamedTuple):
    """A pair of shares sealed for, or by, `user`: AES-256-GCM with a fresh nonce."""

    user: int
    nonce: bytes
    sealed: bytes


class UserEntry(NamedTuple):
    """A client."""

    user: int


class SignatureEntry(NamedTuple):
    """A client's signature on the survivors."""

    user: int
    signature: bytes


class ShareEntry(NamedTuple):
    """One share about one peer; since a peer stands in a list once, the message cannot hold both."""

    user: int
    secret: int
    share: bytes


#: from, to, share of s^SK, share of b: what is sealed. 16 bytes of tag follow.
SHARES: Final = Struct(f">HH{SHARE}s{SHARE}s")
ENTRIES: Final[dict[type[Any], Struct]] = {
    KeyEntry: Struct(f">H{KEY}s{KEY}s{SIGNATURE}s"),
    SealedEntry: Struct(f">H{NONCE}s{SHARES.size + 16}s"),
    UserEntry: Struct(">H"),
    SignatureEntry: Struct(f">H{SIGNATURE}s"),
    ShareEntry: Struct(f">HB{SHARE}s"),
}


def pack(layout: Struct, *values: Any) -> bytes:
    """Pack exactly; `struct` alone would silently pad or cut a byte string."""
    packed = layout.pack(*values)
    if layout.unpack(packed) != values:
        raise ValueError("a field has the wrong length")
    return packed


def labelled(label: Label, *parts: bytes) -> bytes:
    """Join what a signature or a key is bound to; each part has a fixed length or is the last."""
    return DOMAIN + bytes([label]) + b"".join(parts)


def list_bytes(entries: Iterable[Any], entry: type[Any]) -> bytes:
    """Write a list."""
    packed = [pack(ENTRIES[entry], *one) for one in entries]
    return len(packed).to_bytes(2, "big") + b"".join(packed)


def _list_of(body: bytes, entry: type[Any]) -> tuple[Any, ...]:
    layout = ENTRIES[entry]
    if len(body) < 2 or len(body) != 2 + int.from_bytes(body[:2], "big") * layout.size:
        raise malformed("a list whose length is not the one it states")
    entries = tuple(entry(*values) for values in layout.iter_unpack(body[2:]))
    users = [one.user for one in entries]
    if any(after <= before for before, after in zip([0, *users], users, strict=False)):
        raise malformed("a list that is not in ascending order, each user once")
    return entries


def malformed(what: str) -> ProtocolError:
    """Make the error for bytes that no honest sender writes."""
    return ProtocolError(f"the peer sent {what}; the round is lost, look at the peer's version", code="malformed")


@dataclass(frozen=True)
class Message:
    """Base of all bodies; `encode` and `decode` are inverse to each other."""

    KIND: ClassVar[int]

    def encode(self) -> bytes:
        """Write the body."""
        raise NotImplementedError

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body, or raise ProtocolError (``malformed``)."""
        raise NotImplementedError


@dataclass(frozen=True)
class RoundHeader(Message):
    """The coordinator opens a round; `header` reads the content."""

    KIND = 1
    content: bytes

    def encode(self) -> bytes:
        """Write the body."""
        return self.content

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body."""
        return cls(bytes(body))


@dataclass(frozen=True)
class AdvertiseKeys(Message):
    """c_u^PK, s_u^PK and σ_u."""

    KIND = 2
    c_pk: bytes
    s_pk: bytes
    signature: bytes

    _LAYOUT: ClassVar = Struct(f">{KEY}s{KEY}s{SIGNATURE}s")

    def encode(self) -> bytes:
        """Write the body."""
        return pack(self._LAYOUT, self.c_pk, self.s_pk, self.signature)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body."""
        if len(body) != cls._LAYOUT.size:
            raise malformed("keys of the wrong length")
        return cls(*cls._LAYOUT.unpack(body))


@dataclass(frozen=True)
class ListMessage(Message):
    """A body that is one list."""

    ENTRY: ClassVar[type[Any]]
    entries: tuple[Any, ...]

    def encode(self) -> bytes:
        """Write the body."""
        return list_bytes(self.entries, self.ENTRY)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body."""
        return cls(_list_of(bytes(body), cls.ENTRY))


@dataclass(frozen=True)
class KeyList(ListMessage):
    """The keys of U1, as advertised."""

    KIND = 3
    ENTRY = KeyEntry
    entries: tuple[KeyEntry, ...]


@dataclass(frozen=True)
class ShareKeys(Message):
    """e_{u,v} for every other v in U1, and a commitment to b_u by which the coordinator knows a wrong share."""

    KIND = 4
    commitment: bytes
    entries: tuple[SealedEntry, ...]

    def encode(self) -> bytes:
        """Write the body."""
        if len(self.commitment) != KEY:
            raise ValueError("a commitment has 32 bytes")
        return self.commitment + list_bytes(self.entries, SealedEntry)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body."""
        return cls(bytes(body[:KEY]), _list_of(bytes(body[KEY:]), SealedEntry))


@dataclass(frozen=True)
class CiphertextList(ListMessage):
    """e_{v,u} of every other v in U2, for u."""

    KIND = 5
    ENTRY = SealedEntry
    entries: tuple[SealedEntry, ...]


@dataclass(frozen=True)
class MaskedInput(Message):
    """y_u, packed (`encode`)."""

    KIND = 6
    packed: Buffer

    def encode(self) -> bytes:
        """Write the body."""
        return bytes(self.packed)

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body; it stays where it lies, for it is large."""
        return cls(body)


@dataclass(frozen=True)
class SurvivorList(ListMessage):
    """U3: the clients whose masked input is in the sum."""

    KIND = 7
    ENTRY = UserEntry
    entries: tuple[UserEntry, ...]


@dataclass(frozen=True)
class ConsistencyCheck(Message):
    """σ'_u on U3."""

    KIND = 8
    signature: bytes

    def encode(self) -> bytes:
        """Write the body."""
        if len(self.signature) != SIGNATURE:
            raise ValueError("a signature has 64 bytes")
        return self.signature

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body."""
        if len(body) != SIGNATURE:
            raise malformed("a signature of the wrong length")
        return cls(bytes(body))


@dataclass(frozen=True)
class SignatureList(ListMessage):
    """The signatures of U4."""

    KIND = 9
    ENTRY = SignatureEntry
    entries: tuple[SignatureEntry, ...]


@dataclass(frozen=True)
class Unmasking(ListMessage):
    """For each peer of U2 one share: of b where it is in U3, of s^SK where it dropped out."""

    KIND = 10
    ENTRY = ShareEntry
    entries: tuple[ShareEntry, ...]


@dataclass(frozen=True)
class Abort(Message):
    """The sender is out of the round; it gives no reason, for a reason could tell something about its data."""

    KIND = 11

    def encode(self) -> bytes:
        """Write the body."""
        return b""

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body."""
        if len(body):
            raise malformed("an abort with a body")
        return cls()


KINDS: Final[dict[int, type[Message]]] = {
    kind.KIND: kind
    for kind in (
        RoundHeader, AdvertiseKeys, KeyList, ShareKeys, CiphertextList, MaskedInput, SurvivorList, ConsistencyCheck,
        SignatureList, Unmasking, Abort,
    )
}  # fmt: skip
