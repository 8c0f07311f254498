"""The dealer: makes bundles, hands each half to its owner once, and forgets (no I/O; the clock is passed in)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from dicom_node.core.errors import ProtocolError, Unavailable

from .deal import materials
from .messages import Bundle, Deal, Fetch, Half, Material, Message
from .plan import parse
from .prg import Context, bundle_masks, weight_mask_id, weight_mask_seed


@dataclass(frozen=True)
class _Waiting:
    """Party 1's half of a bundle, and who may take it."""

    half: Half
    model: bytes
    program: bytes
    hospital: bytes
    party: bytes
    forgotten_at: float
    #: What follows the half, made when it is taken: it is too much to keep.
    materials: Callable[[], Iterator[Material]]


class Deck:
    """All bundles of which party 1 has not taken its half yet; in memory alone, so a restart burns them.

    Parameters
    ----------
    master : bytes
        The dealer's only lasting secret, 32 bytes: the weight masks are derived from it.
    hospitals, parties : frozenset of bytes
        Fingerprints of those who may ask for bundles, and for whom.
    lifetime_s : float
        Time for party 1 to take its half, seconds.
    largest : int
        Bundles that may wait at once for one hospital.
    random : callable
        Returns as many unpredictable bytes as asked for, e.g. `os.urandom`.
    """

    def __init__(
        self,
        master: bytes,
        hospitals: frozenset[bytes],
        parties: frozenset[bytes],
        *,
        lifetime_s: float,
        largest: int,
        random: Callable[[int], bytes],
    ) -> None:
        self._master = master
        self._hospitals = hospitals
        self._parties = parties
        self._lifetime_s = lifetime_s
        self._largest = largest
        self._random = random
        self._lock = threading.Lock()
        self._waiting: dict[bytes, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, hospitals: frozenset[bytes], parties: frozenset[bytes]) -> None:
        """Replace the lists of those who may ask; bundles that wait for, or from, anybody else are burned."""
        with self._lock:
            self._hospitals, self._parties = hospitals, parties
            kept = {
                key: one for key, one in self._waiting.items() if one.hospital in hospitals and one.party in parties
            }
            self._waiting = kept

    def waiting(self) -> dict[str, float]:
        """Count the bundles that wait, by the fingerprint of the hospital."""
        with self._lock:
            return dict(Counter(one.hospital.hex() for one in self._waiting.values()))

    def handle(self, peer: bytes, message: Message, now: float) -> Message:
        """Answer one message from the holder of the certificate `peer`.

        Raises
        ------
        ProtocolError
            The message is not legal for this peer; a bundle that it names is burned.
        Unavailable
            Too many of the hospital's bundles wait already.
        """
        return next(self.answers(peer, message, now))

    def answers(self, peer: bytes, message: Message, now: float) -> Iterator[Message]:
        """Answer as `handle`; party 1's half is followed by its material, made on the way."""
        self.forget(now)
        if isinstance(message, Deal) and peer in self._hospitals:
            yield self._deal(peer, message, now)
            return
        if isinstance(message, Fetch) and peer in self._parties:
            found = self._hand_over(peer, message)
            yield found.half
            yield from found.materials()
            return
        raise ProtocolError(f"this peer may not send {type(message).__name__} to the dealer", code="out-of-order")

    def forget(self, now: float) -> None:
        """Burn the bundles whose time is over."""
        with self._lock:
            for bundle in [key for key, one in self._waiting.items() if one.forgotten_at <= now]:
                del self._waiting[bundle]

    def _deal(self, hospital: bytes, message: Deal, now: float) -> Bundle:
        if message.party not in self._parties:
            raise ProtocolError("the dealer does not know that party 1", code="unknown-party")
        with self._lock:
            if sum(one.hospital == hospital for one in self._waiting.values()) >= self._largest:
                raise Unavailable("too many bundles of this hospital wait", code="dealer-full")
        plan = parse(message.program)
        bundle, seed = self._random(16), self._random(32)
        mask_seed = weight_mask_seed(self._master, message.model, hospital, message.party)
        masks = bundle_masks(seed, Context(message.session, bundle, message.model, hospital, message.party))
        half, private = Half(bundle, mask_seed), self._random(32)
        waiting = _Waiting(
            half, message.model, plan.digest, hospital, message.party, now + self._lifetime_s,
            partial(materials, plan, bundle, masks, mask_seed, private_seed=private),
        )  # fmt: skip
        with self._lock:
            self._waiting[bundle] = waiting
        return Bundle(bundle, seed, weight_mask_id(mask_seed))

    def _hand_over(self, party: bytes, message: Fetch) -> _Waiting:
        with self._lock:
            found = self._waiting.pop(message.bundle, None)  # whatever follows, this bundle is not offered again
        if found is None:
            raise ProtocolError("the bundle is unknown, used or forgotten", code="unknown-bundle")
        asked = (party, message.hospital, message.model, message.program)
        if asked != (found.party, found.hospital, found.model, found.program):
            raise ProtocolError("the bundle was dealt for others, or for another model", code="wrong-bundle")
        return found
