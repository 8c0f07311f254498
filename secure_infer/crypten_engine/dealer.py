"""The dealer of tuples: deals ahead and keeps nothing, since a bundle's name and its owners make its seeds again.

The secret behind the seeds lives as long as the process; a restart burns every bundle that is on its way.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from dicom_node.core.errors import ProtocolError, Unavailable

from ..protocol.messages import Message, TupleCorrections, TupleDeal, TupleFetch, TupleSeed
from ..protocol.plan import Plan, parse
from ..protocol.prg import tuple_masks, tuple_seed
from .tuples import encoded_corrections

HOSPITAL, PARTY = b"0", b"1"
#: Programs that are remembered between a bundle's two halves.
LARGEST_MEMORY = 64


class TupleDealer:
    """Answers hospitals and parties (no I/O).

    Parameters
    ----------
    random : callable
        Returns as many unpredictable bytes as asked for, e.g. `os.urandom`.
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._hospitals: frozenset[bytes] = frozenset()
        self._parties: frozenset[bytes] = frozenset()
        self._random = random
        self._secret = random(32)
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, hospitals: frozenset[bytes], parties: frozenset[bytes]) -> None:
        """Name the certificates that may ask, by fingerprint; nobody may before."""
        self._hospitals, self._parties = hospitals, parties

    def answers(self, peer: bytes, message: Message) -> Iterator[Message]:
        """Answer one message from the holder of the certificate `peer`.

        Raises
        ------
        ProtocolError
            The message is not legal for this peer, or malformed.
        Unavailable
            The program was forgotten (``unknown-bundle``): ask for a new bundle.
        """
        if isinstance(message, TupleDeal) and peer in self._hospitals:
            yield self._deal(peer, message)
        elif isinstance(message, TupleFetch) and peer in self._parties:
            yield from self._fetch(peer, message)
        else:
            raise ProtocolError(f"this peer may not send {type(message).__name__} to the dealer", code="out-of-order")

    def _deal(self, hospital: bytes, message: TupleDeal) -> TupleSeed:
        if message.party not in self._parties:
            raise ProtocolError("the dealer does not know that party 1", code="unknown-party")
        plan = parse(message.program)
        with self._lock:
            self._plans[plan.digest] = plan
            self._plans.move_to_end(plan.digest)
            while len(self._plans) > LARGEST_MEMORY:
                self._plans.popitem(last=False)
        # Fresh if either generator is: the same name twice would mean the same masks twice.
        bundle = hashlib.sha256(message.session + self._random(32)).digest()[:16]
        bound = bundle + message.model + plan.digest + hospital + message.party
        return TupleSeed(bundle, tuple_seed(self._secret, bound, HOSPITAL))

    def _fetch(self, party: bytes, message: TupleFetch) -> Iterator[Message]:
        with self._lock:
            plan = self._plans.get(message.program)
        if plan is None:
            raise Unavailable("the bundle's program is not known here any more", code="unknown-bundle")
        bundle = message.bundle
        # Whoever lies about any of this gets corrections that fit no other half.
        bound = bundle + message.model + plan.digest + message.hospital + party
        hospital, seed = (tuple_seed(self._secret, bound, one) for one in (HOSPITAL, PARTY))
        yield TupleSeed(bundle, seed)
        for number, values in encoded_corrections(plan.program, tuple_masks(hospital), tuple_masks(seed)):
            yield TupleCorrections(bundle, number, values)
