"""The coordinator's side of a round (Bonawitz et al. 2017, Figure 4, "Server").

A frame that is refused changes nothing: the client who sent it has simply not answered, and the round goes on without
it. The machine has no clock; `proceed` says that the time of a stage is up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError, Unavailable

from . import shamir
from .encode import add_packed, decode
from .frames import Outgoing, frame, keys_statement, open_frame, survivors_statement, verify
from .header import Header
from .masks import Words, add_masks, agree, commitment, pairwise_key, self_mask_key
from .messages import (
    COORDINATOR,
    Abort,
    AdvertiseKeys,
    Buffer,
    CiphertextList,
    ConsistencyCheck,
    KeyEntry,
    KeyList,
    MaskedInput,
    Message,
    SealedEntry,
    Secret,
    ShareEntry,
    ShareKeys,
    SignatureEntry,
    SignatureList,
    SurvivorList,
    Unmasking,
    UserEntry,
)
from .stages import OVER, Stage, out_of_order, wrong_round


@dataclass
class Collected:
    """What the clients sent; none of it outlives the round but the sum."""

    keys: dict[int, KeyEntry] = field(default_factory=dict)  # of U1
    key_list: KeyList = field(default_factory=lambda: KeyList(()))
    commitments: dict[int, bytes] = field(default_factory=dict)
    sealed: dict[int, dict[int, SealedEntry]] = field(default_factory=dict)  # e_{u,v} by u and v
    shared: frozenset[int] = frozenset()  # U2
    signatures: dict[int, bytes] = field(default_factory=dict)  # of U4
    shares: dict[int, dict[int, ShareEntry]] = field(default_factory=dict)  # by giver, who are U5, and peer


class Server:
    """The coordinator in one round.

    Parameters
    ----------
    header : Header
    identity : Ed25519PrivateKey
        The coordinator's; the sites pinned its public half.

    Attributes
    ----------
    stage : Stage
    survivors : frozenset of int
        U3: whose updates are in the sum; known from `CONSISTENCY_CHECK` on.
    """

    LEGAL: ClassVar[Mapping[tuple[Stage, type[Message]], str]] = {
        (Stage.ADVERTISE_KEYS, AdvertiseKeys): "_take_keys",
        (Stage.SHARE_KEYS, ShareKeys): "_take_shares",
        (Stage.MASKED_INPUT_COLLECTION, MaskedInput): "_take_input",
        (Stage.CONSISTENCY_CHECK, ConsistencyCheck): "_take_signature",
        (Stage.UNMASKING, Unmasking): "_take_unmasking",
    }

    def __init__(self, header: Header, identity: Ed25519PrivateKey) -> None:
        self.header: Final = header
        self.stage = Stage.SETUP
        self.survivors: frozenset[int] = frozenset()
        self._identity: Final = identity
        self._everyone: Final = frozenset(range(1, header.size + 1))
        self._left: set[int] = set()  # told us that they are out
        self._expected: frozenset[int] = frozenset()  # who may answer in this stage
        self._answered: set[int] = set()
        self._collected = Collected()
        self._sum: Words = np.zeros(0, dtype=np.uint32)

    @property
    def awaited(self) -> frozenset[int]:
        """Clients that have not answered in this stage yet."""
        return self._expected - self._answered - self._left

    def start(self) -> list[Outgoing]:
        """Open the round."""
        if self.stage is not Stage.SETUP:
            raise ProtocolError("a round is opened once", code="out-of-order")
        return self._begin(Stage.ADVERTISE_KEYS, self._everyone, lambda _: self.header.message())

    def handle(self, data: Buffer) -> list[Outgoing]:
        """Take a client's frame; the answer is empty until the last awaited client has answered.

        Raises
        ------
        ProtocolError
            It is not legal now (``out-of-order``, ``duplicate``, ``not-in-round``) or otherwise wrong; nothing has
            changed. In the last stage also: the shares do not fit together (``wrong-share``), and the round is over.
        Unavailable
            So many clients left that the round is over (``below-threshold``).
        """
        read = open_frame(data)
        if read.round_id != self.header.round_id:
            raise wrong_round()
        if read.sender not in self._everyone:
            raise ProtocolError("a frame of nobody in the cohort came", code="wrong-sender")
        read.verify(self.header.cohort[read.sender - 1])
        if read.kind is Abort and self.stage not in OVER:
            self._left.add(read.sender)
        else:
            method = self.LEGAL.get((self.stage, read.kind))
            if method is None:
                raise out_of_order(read.kind, self.stage)
            if read.sender not in self._expected - self._left:
                raise ProtocolError("a client that dropped out of the round sent on", code="not-in-round")
            if read.sender in self._answered:
                raise ProtocolError("a client answered twice; the first answer counts", code="duplicate")
            getattr(self, method)(read.sender, read.message())
            self._answered.add(read.sender)
        return self.proceed() if self._expected and not self.awaited else []

    def proceed(self) -> list[Outgoing]:
        """Go on to the next stage with the clients that have answered, for the others' time is up.

        Raises
        ------
        Unavailable
            They are fewer than the threshold (``below-threshold``); the round is over and tells nothing.
        ProtocolError
            There is nothing to proceed from (``out-of-order``); ``wrong-share`` as in `handle`.
        """
        if self.stage in OVER or self.stage is Stage.SETUP:
            raise ProtocolError(f"a round cannot proceed from {self.stage.value}", code="out-of-order")
        answered = frozenset(self._answered)
        if len(answered) < self.header.threshold:
            stage = self.stage
            self._end(Stage.ABORTED)
            raise Unavailable(
                f"{len(answered)} hospitals answered in {stage.value}, below the threshold of {self.header.threshold}; "
                "open a new round",
                code="below-threshold",
            )
        if self.stage is Stage.UNMASKING:
            return self._finish(sorted(answered))
        following, tell = {
            Stage.ADVERTISE_KEYS: (Stage.SHARE_KEYS, self._tell_keys),
            Stage.SHARE_KEYS: (Stage.MASKED_INPUT_COLLECTION, self._tell_ciphertexts),
            Stage.MASKED_INPUT_COLLECTION: (Stage.CONSISTENCY_CHECK, self._tell_survivors),
            Stage.CONSISTENCY_CHECK: (Stage.UNMASKING, self._tell_signatures),
        }[self.stage]
        return self._begin(following, answered, tell(answered))

    def abort(self) -> list[Outgoing]:
        """End the round for good and return what tells the clients so."""
        if self.stage is Stage.DONE:
            return []
        self._end(Stage.ABORTED)
        return [self._outgoing(user, Abort()) for user in sorted(self._everyone - self._left)]

    def total(self) -> Words:
        """Return the sum over U3 as ring elements mod 2^bits, shape (dimension,).

        Raises
        ------
        ProtocolError
            The round has not come to its end (``out-of-order``).
        """
        if self.stage is not Stage.DONE:
            raise ProtocolError(f"a round in {self.stage.value} has no sum", code="out-of-order")
        return self._sum & np.uint32((1 << self.header.bits) - 1)

    def result(self) -> list[NDArray[np.float64]]:
        """Return the sum over U3 as numbers, one array for each block."""
        return decode(self.header, self.total())

    def _take_keys(self, user: int, message: AdvertiseKeys) -> None:
        statement = keys_statement(self.header.round_id, user, message.c_pk, message.s_pk)
        verify(self.header.cohort[user - 1], message.signature, statement)
        known = {key for entry in self._collected.keys.values() for key in (entry.c_pk, entry.s_pk)}
        # The clients would all abort: better one is left out.
        if message.c_pk == message.s_pk or known & {message.c_pk, message.s_pk}:
            raise ProtocolError("a client advertised keys that stand in the list already", code="wrong-keys")
        for key in (message.c_pk, message.s_pk):
            agree(X25519PrivateKey.generate(), key)
        self._collected.keys[user] = KeyEntry(user, message.c_pk, message.s_pk, message.signature)

    def _tell_keys(self, _: frozenset[int]) -> Callable[[int], Message]:
        self._collected.key_list = KeyList(tuple(self._collected.keys[user] for user in sorted(self._collected.keys)))
        return lambda _: self._collected.key_list

    def _take_shares(self, user: int, message: ShareKeys) -> None:
        if [entry.user for entry in message.entries] != sorted(set(self._collected.keys) - {user}):
            raise ProtocolError("a client did not share its secrets with everybody", code="wrong-members")
        self._collected.commitments[user] = message.commitment
        self._collected.sealed[user] = {entry.user: entry for entry in message.entries}

    def _tell_ciphertexts(self, shared: frozenset[int]) -> Callable[[int], Message]:
        sealed, self._collected.sealed = self._collected.sealed, {}

        def tell(user: int) -> Message:
            entries = ((sender, sealed[sender][user]) for sender in sorted(shared) if sender != user)
            return CiphertextList(tuple(SealedEntry(sender, one.nonce, one.sealed) for sender, one in entries))

        self._collected.shared = shared
        self._sum = np.zeros(self.header.dimension, dtype=np.uint32)
        return tell

    def _take_input(self, _: int, message: MaskedInput) -> None:
        # Added as it comes: no single masked input is kept.
        add_packed(self.header, memoryview(message.packed), self._sum)

    def _tell_survivors(self, survivors: frozenset[int]) -> Callable[[int], Message]:
        self.survivors = survivors
        message = SurvivorList(tuple(UserEntry(user) for user in sorted(survivors)))
        return lambda _: message

    def _take_signature(self, user: int, message: ConsistencyCheck) -> None:
        statement = survivors_statement(
            self.header.round_id, self._collected.key_list, self._collected.shared, self.survivors
        )
        verify(self.header.cohort[user - 1], message.signature, statement)
        self._collected.signatures[user] = message.signature

    def _tell_signatures(self, signers: frozenset[int]) -> Callable[[int], Message]:
        message = SignatureList(
            tuple(SignatureEntry(user, self._collected.signatures[user]) for user in sorted(signers))
        )
        return lambda _: message

    def _take_unmasking(self, user: int, message: Unmasking) -> None:
        expected = [
            (peer, Secret.SELF_MASK if peer in self.survivors else Secret.KEY)
            for peer in sorted(self._collected.shared)
        ]
        if [(entry.user, entry.secret) for entry in message.entries] != expected:
            raise ProtocolError("a client gave other shares than were asked for", code="wrong-members")
        for entry in message.entries:
            shamir.element(entry.share)
        self._collected.shares[user] = {entry.user: entry for entry in message.entries}

    def _finish(self, answered: list[int]) -> list[Outgoing]:
        try:
            self._unmask(answered[: self.header.threshold])
        except ProtocolError:
            self._end(Stage.ABORTED)
            raise
        self._end(Stage.DONE)
        return []

    def _unmask(self, givers: list[int]) -> None:
        """Take the masks off: Σ y_u − Σ p_u + Σ p_{v,u}, u in U3, v in U2 but not in U3."""
        coefficients = shamir.weights(givers)
        round_id = self.header.round_id
        plus: list[bytes] = []
        minus: list[bytes] = []
        for user in sorted(self._collected.shared):
            secret = shamir.combine(
                {giver: self._collected.shares[giver][user].share for giver in givers}, coefficients
            )
            if user in self.survivors:
                self._require(commitment(secret, round_id, user) == self._collected.commitments[user])
                minus.append(self_mask_key(secret, round_id, user))
                continue
            key = X25519PrivateKey.from_private_bytes(secret)
            own = self._collected.keys[user].s_pk
            self._require(key.public_key().public_bytes_raw() == own)
            for peer in sorted(self.survivors):
                pair = {user: own, peer: self._collected.keys[peer].s_pk}
                mask = pairwise_key(agree(key, pair[peer]), round_id, pair)
                # y_peer holds Δ_{peer,user} times the mask.
                (minus if peer > user else plus).append(mask)
        add_masks(self._sum, plus, minus)

    @staticmethod
    def _require(fits: bool) -> None:
        if not fits:
            raise ProtocolError(
                "shares give a secret that its owner did not commit to: a client dealt or gave a wrong one",
                code="wrong-share",
            )

    def _begin(self, stage: Stage, expected: Iterable[int], message: Callable[[int], Message]) -> list[Outgoing]:
        self.stage = stage
        self._expected = frozenset(expected)
        self._answered = set()
        # One message for all is written and signed once.
        frames: dict[Message, bytes] = {}
        sent = []
        for user in sorted(self._expected - self._left):
            one = message(user)
            if one not in frames:
                frames[one] = frame(one, COORDINATOR, self.header.round_id, self._identity)
            sent.append(Outgoing(user, frames[one]))
        return sent

    def _outgoing(self, user: int, message: Message) -> Outgoing:
        return Outgoing(user, frame(message, COORDINATOR, self.header.round_id, self._identity))

    def _end(self, stage: Stage) -> None:
        self.stage = stage
        self._expected = frozenset()
        self._collected = Collected()
        if stage is not Stage.DONE:
            self._sum = np.zeros(0, dtype=np.uint32)
