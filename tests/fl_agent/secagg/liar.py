"""A coordinator that keeps to no protocol: it holds the key, and asks the clients what it likes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError, VeilRayError
from fl_agent.secagg.client import Client, Secrets
from fl_agent.secagg.encode import encode
from fl_agent.secagg.frames import frame, open_frame
from fl_agent.secagg.messages import (
    CiphertextList,
    KeyEntry,
    KeyList,
    Message,
    SealedEntry,
    ShareKeys,
    SignatureEntry,
    SurvivorList,
    UserEntry,
)
from fl_agent.secagg.stages import Stage
from tests.fl_agent.secagg.consortium import Consortium


class Coordinator:
    """Each method is one question; what it asks is the test's choice."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium = consortium
        self.clients = consortium.clients
        self.updates = consortium.updates()

    def tell(self, user: int, message: Message) -> Message | None:
        header = self.consortium.header
        said = self.clients[user].handle(frame(message, 0, header.round_id, self.consortium.coordinator))
        return open_frame(said[0].frame).message() if said else None

    def advertise(self) -> dict[int, KeyEntry]:
        found = {}
        for user in self.clients:
            keys = self.tell(user, self.consortium.header.message())
            found[user] = KeyEntry(user, keys.c_pk, keys.s_pk, keys.signature)
        return found

    def share(self, keys: dict[int, KeyEntry]) -> dict[int, ShareKeys]:
        self.keys = KeyList(tuple(keys.values()))
        return {user: self.tell(user, self.keys) for user in self.clients}

    def ciphertexts(self, user: int, shared: dict[int, ShareKeys]) -> CiphertextList:
        entries = []
        for sender, said in shared.items():
            if sender != user:
                one = next(entry for entry in said.entries if entry.user == user)
                entries.append(SealedEntry(sender, one.nonce, one.sealed))
        return CiphertextList(tuple(entries))

    def masked(self) -> dict[int, NDArray[np.uint32]]:
        shared = self.share(self.advertise())
        found = {}
        for user in self.clients:
            self.tell(user, self.ciphertexts(user, shared))
            (sent,) = self.clients[user].contribute(self.updates[user])
            found[user] = np.frombuffer(bytes(open_frame(sent.frame).message().packed), dtype="<u4")
        return found

    def sign(self, user: int, survivors: set[int]) -> SignatureEntry:
        said = self.tell(user, SurvivorList(tuple(map(UserEntry, sorted(survivors)))))
        return SignatureEntry(user, said.signature)

    def encoded(self, user: int) -> NDArray[np.uint32]:
        words = np.empty(self.consortium.header.dimension, dtype=np.uint32)
        encode(self.consortium.header, self.updates[user], words)
        return words


def refused(client: Client, act: Callable[[], object], code: str) -> None:
    """The attack ends in this error, the client's round is over and its secrets are gone, and it stays so."""
    with pytest.raises(VeilRayError) as raised:
        act()
    assert raised.value.code == code
    assert client.stage is Stage.ABORTED
    assert client._secrets == Secrets()
    with pytest.raises(ProtocolError):
        act()
    assert client.stage is Stage.ABORTED
