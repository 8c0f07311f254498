"""A hospital's side of a round (Bonawitz et al. 2017, Figure 4, "User u", with the underlined, malicious-secure parts).

A `Client` is good for one round and is changed by `handle` and `contribute` alone. Whatever goes wrong leaves it
`ABORTED` with its secrets dropped, and it stays aborted: nobody talks it into another answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dicom_node.core.errors import ProtocolError

from . import shamir
from .encode import Values, encode, pack_words, packed_size
from .frames import (
    Outgoing,
    frame,
    frame_size,
    keys_statement,
    open_frame,
    room_for,
    seal_frame,
    survivors_statement,
    verify,
)
from .header import Header, round_id
from .masks import add_masks, agree, channel_key, commitment, pairwise_key, self_mask_key
from .messages import (
    COORDINATOR,
    NONCE,
    SHARES,
    Abort,
    AdvertiseKeys,
    Buffer,
    CiphertextList,
    ConsistencyCheck,
    KeyEntry,
    KeyList,
    MaskedInput,
    Message,
    RoundHeader,
    SealedEntry,
    Secret,
    ShareEntry,
    ShareKeys,
    SignatureList,
    SurvivorList,
    Unmasking,
    malformed,
    pack,
)
from .noise import add_noise
from .policy import SitePolicy
from .rounds import RoundLedger
from .stages import OVER, Stage, out_of_order, wrong_round


class Held(NamedTuple):
    """A client's shares of one peer's two secrets; at most one of them ever leaves."""

    key: bytes  # of s_v^SK
    self_mask: bytes  # of b_v


@dataclass
class Secrets:
    """All that must not outlive a round; forgetting it is one assignment."""

    c_sk: X25519PrivateKey | None = None
    s_sk: X25519PrivateKey | None = None
    seed: bytes = b""  # b_u
    channels: dict[int, AESGCM] = field(default_factory=dict)  # opens what a peer sealed
    pairwise: dict[int, bytes] = field(default_factory=dict)  # keys of p_{u,v}
    held: dict[int, Held] = field(default_factory=dict)  # U2 is its keys


class Client:
    """One hospital in one round.

    Parameters
    ----------
    identity : Ed25519PrivateKey
        This site's; its public half is what the other sites pinned.
    policy : SitePolicy
    rounds : RoundLedger

    Attributes
    ----------
    stage : Stage
    header : Header
        From `ADVERTISE_KEYS` on.
    """

    LEGAL: ClassVar[Mapping[tuple[Stage, type[Message]], str]] = {
        (Stage.SETUP, RoundHeader): "_advertise_keys",
        (Stage.ADVERTISE_KEYS, KeyList): "_share_keys",
        (Stage.SHARE_KEYS, CiphertextList): "_take_shares",
        (Stage.MASKED_INPUT_COLLECTION, SurvivorList): "_check_consistency",
        (Stage.CONSISTENCY_CHECK, SignatureList): "_unmask",
    }

    def __init__(self, identity: Ed25519PrivateKey, policy: SitePolicy, rounds: RoundLedger) -> None:
        self.stage = Stage.SETUP
        self._identity: Final = identity
        self._own: Final = identity.public_key().public_bytes_raw()
        self._policy: Final = policy
        self._rounds: Final = rounds
        self._round_id = b""
        self._user = 0
        self._advertised = KeyEntry(0, b"", b"", b"")
        self._keys = KeyList(())
        self._survivors: frozenset[int] = frozenset()
        self._secrets = Secrets()

    def handle(self, data: Buffer) -> list[Outgoing]:
        """Take a frame of the coordinator's and return the answer.

        Raises
        ------
        ProtocolError
            It is not legal now (``out-of-order``), of another round (``wrong-round``) or otherwise wrong.
        Refused
            The header is beyond this site's policy.
        Unavailable
            The ledger of rounds cannot be written.
        """
        return self._guarded(self._handle, data)

    def contribute(self, values: Sequence[Values]) -> list[Outgoing]:
        """Mask this site's update and return it as y_u; legal once, in stage `INPUT`.

        Parameters
        ----------
        values : sequence of ndarray, each of shape (length,)
            One for each block of the header, see `encode.encode`. Where a block states a variance, this site's share
            of the noise is drawn and added here.

        Raises
        ------
        Refused
            Values are not finite or not of the stated shapes; nothing was sent.
        ProtocolError
            Not now (``out-of-order``).
        """
        return self._guarded(self._contribute, values)

    def abort(self) -> list[Outgoing]:
        """Leave the round for good, drop its secrets, and return what tells the coordinator so."""
        entered = self._user > 0 and self.stage is not Stage.DONE
        self._drop()
        return self._send(Abort()) if entered else []

    def _handle(self, data: Buffer) -> list[Outgoing]:
        read = open_frame(data)
        if read.sender != COORDINATOR:
            raise ProtocolError("a frame that is not the coordinator's came", code="wrong-sender")
        if read.round_id != (round_id(bytes(read.body)) if read.kind is RoundHeader else self._round_id):
            raise wrong_round()
        read.verify(self._policy.coordinator)
        if read.kind is Abort and self.stage not in OVER:
            self._drop()
            return []
        method = self.LEGAL.get((self.stage, read.kind))
        if method is None:
            raise out_of_order(read.kind, self.stage)
        answer: list[Outgoing] = getattr(self, method)(read.message())
        return answer

    def _advertise_keys(self, message: RoundHeader) -> list[Outgoing]:
        header = Header.decode(message.content)
        self._policy.check(header, self._own)
        # Durable before the first key of the round exists: a crash from here on costs the round and nothing else.
        self._rounds.enter(header.run, header.round)
        self.header = header
        self._round_id = header.round_id
        self._user = header.cohort.index(self._own) + 1
        c_sk, s_sk = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._secrets.c_sk, self._secrets.s_sk = c_sk, s_sk
        c_pk, s_pk = (key.public_key().public_bytes_raw() for key in (c_sk, s_sk))
        signature = self._identity.sign(keys_statement(self._round_id, self._user, c_pk, s_pk))
        self._advertised = KeyEntry(self._user, c_pk, s_pk, signature)
        self.stage = Stage.ADVERTISE_KEYS
        return self._send(AdvertiseKeys(c_pk, s_pk, signature))

    def _share_keys(self, message: KeyList) -> list[Outgoing]:
        keys = {entry.user: entry for entry in message.entries}
        if keys.get(self._user) != self._advertised:
            raise ProtocolError("the list of keys does not hold this site's own", code="wrong-keys")
        self._require_enough(len(keys), max(keys))
        public = [key for entry in message.entries for key in (entry.c_pk, entry.s_pk)]
        if len(set(public)) != len(public):
            raise ProtocolError("two advertised keys are the same", code="wrong-keys")
        for entry in message.entries:
            statement = keys_statement(self._round_id, entry.user, entry.c_pk, entry.s_pk)
            verify(self.header.cohort[entry.user - 1], entry.signature, statement)
        seed = secrets.token_bytes(shamir.SECRET)
        assert self._secrets.c_sk is not None
        assert self._secrets.s_sk is not None
        key_shares = shamir.share(self._secrets.s_sk.private_bytes_raw(), self.header.threshold, keys)
        seed_shares = shamir.share(seed, self.header.threshold, keys)
        sealed = []
        for peer in self._others(keys):
            shared = agree(self._secrets.c_sk, keys[peer].c_pk)
            self._secrets.channels[peer] = AESGCM(channel_key(shared, self._round_id, peer, self._user))
            to_peer = AESGCM(channel_key(shared, self._round_id, self._user, peer))
            nonce = secrets.token_bytes(NONCE)
            content = pack(SHARES, self._user, peer, key_shares[peer], seed_shares[peer])
            sealed.append(SealedEntry(peer, nonce, to_peer.encrypt(nonce, content, self._bound(self._user, peer))))
        self._keys = message
        self._secrets.seed = seed
        self._secrets.held[self._user] = Held(key_shares[self._user], seed_shares[self._user])
        self._secrets.c_sk = None
        self.stage = Stage.SHARE_KEYS
        return self._send(ShareKeys(commitment(seed, self._round_id, self._user), tuple(sealed)))

    def _take_shares(self, message: CiphertextList) -> list[Outgoing]:
        keys = {entry.user: entry for entry in self._keys.entries}
        peers = [entry.user for entry in message.entries]
        if self._user in peers or not set(peers) <= set(keys):
            raise ProtocolError("shares of a client without keys came", code="wrong-members")
        self._require_enough(len(peers) + 1, max(peers, default=0))
        # The paper opens them in the last stage; here a wrong one is found before anything is masked.
        for entry in message.entries:
            self._secrets.held[entry.user] = self._open(entry)
        assert self._secrets.s_sk is not None
        mine = self._advertised.s_pk
        for peer in peers:
            shared = agree(self._secrets.s_sk, keys[peer].s_pk)
            pair = {self._user: mine, peer: keys[peer].s_pk}
            self._secrets.pairwise[peer] = pairwise_key(shared, self._round_id, pair)
        self._secrets.s_sk = None
        self._secrets.channels = {}
        self.stage = Stage.INPUT
        return []

    def _contribute(self, values: Sequence[Values]) -> list[Outgoing]:
        if self.stage is not Stage.INPUT:
            raise out_of_order(MaskedInput, self.stage)
        size = packed_size(self.header)
        room = np.empty(frame_size(size), dtype=np.uint8)
        body = room_for(MaskedInput, self._user, self._round_id, size, room.data)
        packs = self.header.bits < 32
        words = np.empty(self.header.dimension, np.uint32) if packs else np.frombuffer(body, dtype="<u4")
        encode(self.header, values, words)
        add_noise(self.header, words)
        # Δ_{u,v} = 1 where u > v, else -1.
        plus = [key for peer, key in self._secrets.pairwise.items() if self._user > peer]
        minus = [key for peer, key in self._secrets.pairwise.items() if self._user < peer]
        add_masks(words, [self_mask_key(self._secrets.seed, self._round_id, self._user), *plus], minus)
        if packs:
            pack_words(self.header, words, body)
        seal_frame(room.data, self._identity)
        self._secrets.seed, self._secrets.pairwise = (
            b"",
            {},
        )  # a second vector under these masks would reveal a difference
        self.stage = Stage.MASKED_INPUT_COLLECTION
        return [Outgoing(COORDINATOR, room.data)]

    def _check_consistency(self, message: SurvivorList) -> list[Outgoing]:
        survivors = {entry.user for entry in message.entries}
        if self._user not in survivors or not survivors <= set(self._secrets.held):
            raise ProtocolError("the survivors are not among the clients that shared their keys", code="wrong-members")
        self._require_enough(len(survivors), max(survivors))
        self._survivors = frozenset(survivors)
        self.stage = Stage.CONSISTENCY_CHECK
        return self._send(ConsistencyCheck(self._identity.sign(self._statement())))

    def _unmask(self, message: SignatureList) -> list[Outgoing]:
        signers = {entry.user for entry in message.entries}
        if not signers <= self._survivors:
            raise ProtocolError("a client that is no survivor signed the survivors", code="wrong-members")
        self._require_enough(len(signers), max(signers, default=0))
        statement = self._statement()
        for entry in message.entries:
            verify(self.header.cohort[entry.user - 1], entry.signature, statement)
        # The one place where shares leave: one for each peer, which of the two is decided by the set just verified.
        entries = [
            ShareEntry(peer, Secret.SELF_MASK, held.self_mask)
            if peer in self._survivors
            else ShareEntry(peer, Secret.KEY, held.key)
            for peer, held in sorted(self._secrets.held.items())
        ]
        self._secrets = Secrets()
        self.stage = Stage.DONE
        return self._send(Unmasking(tuple(entries)))

    def _open(self, entry: SealedEntry) -> Held:
        try:
            content = self._secrets.channels[entry.user].decrypt(
                entry.nonce, entry.sealed, self._bound(entry.user, self._user)
            )
        except InvalidTag as error:
            raise ProtocolError("sealed shares were altered or are of another round", code="wrong-share") from error
        sender, to, key, self_mask = SHARES.unpack(content)
        if (sender, to) != (entry.user, self._user):
            raise ProtocolError("sealed shares are for another client", code="wrong-share")
        shamir.element(key)
        shamir.element(self_mask)
        return Held(key, self_mask)

    def _require_enough(self, count: int, largest: int) -> None:
        if largest > self.header.size:
            raise malformed("a user beyond the cohort")
        if count < self.header.threshold:
            raise ProtocolError(
                f"{count} clients are below the threshold of {self.header.threshold}", code="below-threshold"
            )

    def _statement(self) -> bytes:
        return survivors_statement(self._round_id, self._keys, self._secrets.held, self._survivors)

    def _bound(self, sender: int, to: int) -> bytes:
        """Return what a sealed share is bound to: run, round, from and to, and the header as a whole."""
        ends = sender.to_bytes(2, "big") + to.to_bytes(2, "big")
        return self.header.run + self.header.round.to_bytes(4, "big") + ends + self._round_id

    def _others(self, users: Mapping[int, object]) -> list[int]:
        return [user for user in users if user != self._user]

    def _send(self, message: Message) -> list[Outgoing]:
        return [Outgoing(COORDINATOR, frame(message, self._user, self._round_id, self._identity))]

    def _guarded(self, step: Callable[[Any], list[Outgoing]], argument: object) -> list[Outgoing]:
        try:
            return step(argument)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self.stage is not Stage.DONE:
            self.stage = Stage.ABORTED
        self._secrets = Secrets()
