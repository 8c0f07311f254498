"""A coordinator and its hospitals in one process, each message carried by hand, so that any of them can be lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fl_agent.secagg.client import Client
from fl_agent.secagg.encode import finest_step
from fl_agent.secagg.frames import Outgoing, open_frame
from fl_agent.secagg.header import Block, Header, Mode, PrivacyTerms, least_threshold
from fl_agent.secagg.messages import (
    AdvertiseKeys,
    Buffer,
    ConsistencyCheck,
    MaskedInput,
    Message,
    ShareKeys,
    Unmasking,
)
from fl_agent.secagg.policy import SitePolicy
from fl_agent.secagg.rounds import RoundLedger
from fl_agent.secagg.server import Server
from fl_agent.secagg.stages import Stage

RUN = b"the training run"
MODEL = b"hash of the model the sites hold"
#: What a client sends, in order; a client may fall silent before any of them.
SENT: tuple[type[Message], ...] = (AdvertiseKeys, ShareKeys, MaskedInput, ConsistencyCheck, Unmasking)
SITE = PrivacyTerms(Mode.SITE, norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, steps=10, epsilon=2.0, delta=1e-5)


def folder() -> TemporaryDirectory[str]:
    """A folder in memory where there is one: a property's many rounds would else wait for the disk at every entry."""
    memory = Path("/dev/shm")
    return TemporaryDirectory(dir=memory if memory.is_dir() else None)


class Consortium:
    """A cohort of `size` hospitals and its coordinator; user u's identity is `identities[u]`."""

    def __init__(
        self,
        folder: Path,
        size: int = 5,
        *,
        threshold: int | None = None,
        bits: int = 32,
        lengths: Sequence[int] = (7,),
        clip: float = 1.0,
        number: int = 1,
    ) -> None:
        self.folder = folder
        self.ledgers: list[RoundLedger] = []
        self.coordinator = Ed25519PrivateKey.generate()
        keys = sorted((Ed25519PrivateKey.generate() for _ in range(size)), key=raw)
        self.identities = dict(enumerate(keys, start=1))
        step = finest_step(size, bits, clip)
        self.header = Header(
            run=RUN,
            round=number,
            model=MODEL,
            cohort=tuple(raw(key) for key in keys),
            threshold=least_threshold(size) if threshold is None else threshold,
            bits=bits,
            blocks=tuple(Block(length, clip, step) for length in lengths),
            privacy=SITE,
        )
        self.server = Server(self.header, self.coordinator)
        self.clients = {user: self.client(user) for user in self.identities}

    def policy(self) -> SitePolicy:
        return SitePolicy(
            coordinator=raw(self.coordinator),
            roster=frozenset(self.header.cohort),
            models=frozenset({MODEL}),
            maximal_epsilon=3.0,
            minimum_cohort=3,
        )

    def client(self, user: int) -> Client:
        self.ledgers.append(RoundLedger(self.folder / f"{user}.sqlite"))
        return Client(self.identities[user], self.policy(), self.ledgers[-1])

    def close(self) -> None:
        for ledger in self.ledgers:
            ledger.close()

    def updates(self, seed: int = 0) -> dict[int, list[NDArray[np.float32]]]:
        generator = np.random.default_rng(seed)
        return {
            user: [generator.uniform(-1.2, 1.2, block.length).astype(np.float32) for block in self.header.blocks]
            for user in self.identities
        }


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def answers(client: Client, frame: Buffer, values: Sequence[NDArray[np.float32]]) -> list[Outgoing]:
    """What a client says to a frame; its update follows as soon as it may."""
    said = client.handle(frame)
    return said + client.contribute(values) if client.stage is Stage.INPUT else said


def run(
    consortium: Consortium,
    updates: Mapping[int, Sequence[NDArray[np.float32]]],
    silent: Mapping[int, type[Message]] | None = None,
) -> list[Buffer]:
    """Drive a round to its end; `silent` says which message a client never sends. Returns what the clients sent."""
    lost = silent or {}
    gone: set[int] = set()
    spoken: list[Buffer] = []
    waiting = consortium.server.start()
    while consortium.server.stage is not Stage.DONE:
        following: list[Outgoing] = []
        for user, frame in waiting:
            if user in gone:
                continue
            for one in answers(consortium.clients[user], frame, updates[user]):
                if lost.get(user) is open_frame(one.frame).kind:
                    gone.add(user)
                    break
                spoken.append(one.frame)
                following += consortium.server.handle(one.frame)
        if not following and consortium.server.stage is not Stage.DONE:
            following = consortium.server.proceed()
        waiting = following
    return spoken


def expected(
    consortium: Consortium, updates: Mapping[int, Sequence[NDArray[np.float32]]], users: Iterable[int]
) -> NDArray[np.uint32]:
    """The sum, slowly and in the open, by Python's integers."""
    total = [0] * consortium.header.dimension
    for user in users:
        place = 0
        for block, values in zip(consortium.header.blocks, updates[user], strict=True):
            for value in values:
                total[place] += max(-block.limit, min(block.limit, round(float(value) / block.step)))
                place += 1
    return np.array([one % (1 << consortium.header.bits) for one in total], dtype=np.uint32)
