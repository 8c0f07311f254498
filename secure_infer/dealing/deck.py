"""The dealer's answers: each half of a bundle to its owner, once, then forgotten (no I/O; the clock is passed in)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dicom_node.core.errors import ProtocolError, Unavailable

from ..protocol.dealer import Dealing, Order
from ..protocol.messages import Bundle, Deal, Fetch, Half, Material, Message
from ..protocol.plan import parse
from .stock import Parcel, Stock


@dataclass(frozen=True)
class _Waiting:
    """A bundle of which party 1 has not taken its half, and who may take it."""

    order: Order
    parcel: Parcel
    forgotten_at: float


class Deck:
    """All bundles that party 0 has and party 1 has not yet; in memory alone, so a restart burns them.

    Parameters
    ----------
    dealing : Dealing
    stock : Stock
    hospitals, parties : frozenset of bytes
        Fingerprints of those who may ask for bundles, and for whom.
    lifetime_s : float
        Time for party 1 to take its half, seconds.
    largest : int
        Bundles that may wait at once for one hospital.
    """

    def __init__(
        self,
        dealing: Dealing,
        stock: Stock,
        hospitals: frozenset[bytes],
        parties: frozenset[bytes],
        *,
        lifetime_s: float,
        largest: int,
    ) -> None:
        self._dealing = dealing
        self._stock = stock
        self._hospitals = hospitals
        self._parties = parties
        self._lifetime_s = lifetime_s
        self._largest = largest
        self._lock = threading.Lock()
        self._waiting: dict[bytes, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, hospitals: frozenset[bytes], parties: frozenset[bytes]) -> None:
        """Replace the lists of those who may ask; bundles that wait for, or from, anybody else are burned."""
        with self._lock:
            self._hospitals, self._parties = hospitals, parties
            orders = {name: one.order for name, one in self._waiting.items()}
            left = [name for name, one in orders.items() if one.hospital not in hospitals or one.party not in parties]
            found = [self._waiting.pop(name) for name in left]
        for one in found:
            one.parcel.burn()

    def waiting(self) -> dict[str, float]:
        """Count the bundles that wait, by the fingerprint of the hospital."""
        with self._lock:
            return dict(Counter(one.order.hospital.hex() for one in self._waiting.values()))

    def handle(self, peer: bytes, message: Message, now: float) -> Message:
        """Give the first of the `answers`."""
        return next(self.answers(peer, message, now))

    def answers(self, peer: bytes, message: Message, now: float) -> Iterator[Message]:
        """Answer one message from the holder of the certificate `peer`; party 1's half is followed by its material.

        Raises
        ------
        ProtocolError
            The message is not legal for this peer; a bundle that it names is burned.
        Unavailable
            Too many of the hospital's bundles wait already.
        """
        self.forget(now)
        if isinstance(message, Deal) and peer in self._hospitals:
            yield self._deal(peer, message, now)
        elif isinstance(message, Fetch) and peer in self._parties:
            yield from self._hand_over(peer, message)
        else:
            kind = type(message).__name__
            raise ProtocolError(f"this peer may not send {kind} to the dealer", code="out-of-order")

    def forget(self, now: float) -> None:
        """Burn the bundles whose time is over."""
        with self._lock:
            late = [bundle for bundle, one in self._waiting.items() if one.forgotten_at <= now]
            found = [self._waiting.pop(bundle) for bundle in late]
        for one in found:
            one.parcel.burn()

    def _deal(self, hospital: bytes, message: Deal, now: float) -> Bundle:
        if message.party not in self._parties:
            raise ProtocolError("the dealer does not know that party 1", code="unknown-party")
        with self._lock:
            if sum(one.order.hospital == hospital for one in self._waiting.values()) >= self._largest:
                raise Unavailable("too many bundles of this hospital wait", code="dealer-full")
        order = Order(message.model, hospital, message.party, message.sealing_key, parse(message.program))
        parcel = self._stock.take(order)
        dealt = parcel.dealt
        with self._lock:
            self._waiting[dealt.bundle] = _Waiting(order, parcel, now + self._lifetime_s)
        return Bundle(dealt.bundle, dealt.sealed, dealt.signed)

    def _hand_over(self, party: bytes, message: Fetch) -> Iterator[Message]:
        with self._lock:
            found = self._waiting.pop(message.bundle, None)  # whatever follows, this bundle is not offered again
        if found is None:
            raise ProtocolError("the bundle is unknown, used or forgotten", code="unknown-bundle")
        order, parcel = found.order, found.parcel
        try:
            if (party, message.hospital, message.model) != (order.party, order.hospital, order.model):
                raise ProtocolError("the bundle was dealt for others, or for another model", code="wrong-bundle")
            if message.program != order.plan.digest:
                raise ProtocolError("the bundle was dealt for another program", code="wrong-bundle")
            yield Half(message.bundle, self._dealing.weight_mask_seed(order), parcel.dealt.signed)
            for name, material in zip(order.plan.materials, parcel.materials(), strict=True):
                yield Material(message.bundle, order.plan.numbers[name], material)
        finally:
            parcel.burn()
