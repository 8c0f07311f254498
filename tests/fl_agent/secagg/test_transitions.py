"""Every message in every stage of both machines: legal, or an error that ends a client's round and not the server's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError, Unavailable
from fl_agent.secagg.client import Secrets
from fl_agent.secagg.frames import frame, open_frame
from fl_agent.secagg.messages import (
    KINDS,
    Abort,
    AdvertiseKeys,
    Buffer,
    CiphertextList,
    ConsistencyCheck,
    KeyList,
    MaskedInput,
    Message,
    RoundHeader,
    ShareKeys,
    SignatureList,
    SurvivorList,
    Unmasking,
)
from fl_agent.secagg.stages import OVER, Stage
from tests.fl_agent.secagg.consortium import Consortium, folder

CLIENT_STAGES = tuple(stage for stage in Stage if stage is not Stage.UNMASKING)
SERVER_STAGES = tuple(stage for stage in Stage if stage is not Stage.INPUT)
#: What takes a client from one stage to the next; its update takes it from INPUT to MASKED_INPUT_COLLECTION.
CLIENT_LEGAL = {
    (Stage.SETUP, RoundHeader): Stage.ADVERTISE_KEYS,
    (Stage.ADVERTISE_KEYS, KeyList): Stage.SHARE_KEYS,
    (Stage.SHARE_KEYS, CiphertextList): Stage.INPUT,
    (Stage.MASKED_INPUT_COLLECTION, SurvivorList): Stage.CONSISTENCY_CHECK,
    (Stage.CONSISTENCY_CHECK, SignatureList): Stage.DONE,
}
#: What takes the server on once the last client has sent it.
SERVER_LEGAL = {
    (Stage.ADVERTISE_KEYS, AdvertiseKeys): Stage.SHARE_KEYS,
    (Stage.SHARE_KEYS, ShareKeys): Stage.MASKED_INPUT_COLLECTION,
    (Stage.MASKED_INPUT_COLLECTION, MaskedInput): Stage.CONSISTENCY_CHECK,
    (Stage.CONSISTENCY_CHECK, ConsistencyCheck): Stage.UNMASKING,
    (Stage.UNMASKING, Unmasking): Stage.DONE,
}


class Event(NamedTuple):
    """What happens next: a frame reaches user's client or, from user, the server, or the user's update is ready."""

    target: str
    user: int
    frame: Buffer


class Play:
    """A round of three, one event at a time, those of user 1 after all others; it can be stopped before any event."""

    def __init__(self, place: Path) -> None:
        self.consortium = Consortium(place, 3)
        self.updates = self.consortium.updates()
        self.server, self.client = self.consortium.server, self.consortium.clients[1]
        self.events: list[Event] = []
        self.seen: dict[type[Message], Message] = {}

    def until(self, target: str, stage: Stage) -> Event:
        """Play until the next event is one of user 1's, for a `target` that stands in `stage`."""
        machine = self.server if target == "server" else self.client
        if self.server.stage is Stage.SETUP:
            self.events = [Event("client", one.to, one.frame) for one in self.server.start()]
        while self.events:
            event = min(self.events, key=lambda one: one.user == 1)
            if event.user == 1 and (event.target == "server") == (target == "server") and machine.stage is stage:
                return event
            self.events.remove(event)
            self.deliver(event)
        assert machine.stage is stage
        return Event("", 0, b"")

    def deliver(self, event: Event) -> None:
        client = self.consortium.clients[event.user]
        if event.frame:
            read = open_frame(event.frame)
            self.seen[read.kind] = read.message()
        if event.target == "server":
            self.events += [Event("client", one.to, one.frame) for one in self.server.handle(event.frame)]
            return
        said = client.contribute(self.updates[event.user]) if event.target == "input" else client.handle(event.frame)
        self.events += [Event("server", event.user, one.frame) for one in said]
        if client.stage is Stage.INPUT:
            self.events.append(Event("input", event.user, b""))

    def client_in(self, stage: Stage) -> Event:
        """Bring user 1 into `stage`, and return what would happen to it next."""
        if stage is Stage.ABORTED:
            self.until("client", Stage.SHARE_KEYS)
            self.client.abort()
            return Event("", 0, b"")
        return self.until("client", stage)

    def server_in(self, stage: Stage) -> Event:
        """Bring the server into `stage`, all but user 1 having answered, and return the answer of user 1."""
        if stage is Stage.ABORTED:
            self.until("server", Stage.SHARE_KEYS)
            self.server.abort()
            return Event("", 0, b"")
        return Event("", 0, b"") if stage is Stage.SETUP else self.until("server", stage)

    def form(self, kind: type[Message], sender: int, whole: Play) -> Buffer:
        """A well-formed frame of this round, of any kind, with what another round said."""
        identity = self.consortium.identities[sender] if sender else self.consortium.coordinator
        message = self.consortium.header.message() if kind is RoundHeader else whole.seen.get(kind, Abort())
        return frame(message, sender, self.consortium.header.round_id, identity)


@pytest.fixture(scope="module")
def whole() -> Iterator[Play]:
    """A round that ran to its end and has seen a message of every kind but the abort."""
    with folder() as place:
        play = Play(Path(place))
        play.until("server", Stage.DONE)
        assert {*play.seen, Abort} == set(KINDS.values())
        yield play


@pytest.mark.parametrize("stage", CLIENT_STAGES)
@pytest.mark.parametrize("kind", KINDS.values())
def test_every_message_in_every_stage_of_a_client(whole: Play, stage: Stage, kind: type[Message]) -> None:
    with folder() as place:
        play = Play(Path(place))
        client, pending = play.client, play.client_in(stage)
        assert client.stage is stage
        following = CLIENT_LEGAL.get((stage, kind))
        if following is not None:
            assert open_frame(pending.frame).kind is kind
            client.handle(pending.frame)
            assert client.stage is following
        elif kind is Abort and stage not in {*OVER, Stage.SETUP}:
            assert client.handle(play.form(kind, 0, whole)) == []
            assert client.stage is Stage.ABORTED
        else:
            with pytest.raises(ProtocolError) as raised:
                client.handle(play.form(kind, 0, whole))
            # Before a header came, every other frame is of a round that the client does not know.
            known = stage is not Stage.SETUP
            assert raised.value.code == ("out-of-order" if known else "wrong-round")
            assert client.stage is (Stage.DONE if stage is Stage.DONE else Stage.ABORTED)
        if client.stage in OVER:
            assert client._secrets == Secrets()


@pytest.mark.parametrize("stage", CLIENT_STAGES)
def test_an_update_in_every_stage_of_a_client(stage: Stage) -> None:
    with folder() as place:
        play = Play(Path(place))
        client = play.client
        play.client_in(stage)
        if stage is Stage.INPUT:
            (sent,) = client.contribute(play.updates[1])
            assert open_frame(sent.frame).kind is MaskedInput
            assert client.stage is Stage.MASKED_INPUT_COLLECTION
            return
        with pytest.raises(ProtocolError) as raised:
            client.contribute(play.updates[1])
        assert raised.value.code == "out-of-order"
        assert client.stage is (Stage.DONE if stage is Stage.DONE else Stage.ABORTED)


@pytest.mark.parametrize("stage", SERVER_STAGES)
@pytest.mark.parametrize("kind", KINDS.values())
def test_every_message_in_every_stage_of_the_server(whole: Play, stage: Stage, kind: type[Message]) -> None:
    with folder() as place:
        play = Play(Path(place))
        server, pending = play.server, play.server_in(stage)
        assert server.stage is stage
        following = SERVER_LEGAL.get((stage, kind))
        if following is not None:
            assert open_frame(pending.frame).kind is kind
            server.handle(pending.frame)
            assert server.stage is following
        elif kind is Abort and stage not in OVER:
            if stage is Stage.SETUP:
                server.handle(play.form(kind, 1, whole))
                assert server.stage is stage
                return
            # Of three, t = 3: with one gone the round is over.
            with pytest.raises(Unavailable, match="below the threshold"):
                server.handle(play.form(kind, 1, whole))
            assert server.stage is Stage.ABORTED
        else:
            before = copy.copy(server._collected), set(server.awaited)
            with pytest.raises(ProtocolError) as raised:
                server.handle(play.form(kind, 1, whole))
            assert raised.value.code == "out-of-order"
            assert server.stage is stage
            assert (server._collected, server.awaited) == before


@pytest.mark.parametrize("stage", SERVER_STAGES)
def test_the_end_of_time_in_every_stage_of_the_server(stage: Stage) -> None:
    with folder() as place:
        play = Play(Path(place))
        play.server_in(stage)
        server = play.server
        with pytest.raises(ProtocolError if stage in {*OVER, Stage.SETUP} else Unavailable):
            server.proceed()
        assert server.stage is (stage if stage in OVER or stage is Stage.SETUP else Stage.ABORTED)


@pytest.mark.parametrize("stage", SERVER_STAGES)
def test_a_round_starts_once_and_has_a_sum_at_its_end_alone(stage: Stage) -> None:
    with folder() as place:
        play = Play(Path(place))
        play.server_in(stage)
        server = play.server
        if stage is Stage.DONE:
            assert server.total().dtype == np.uint32
        else:
            with pytest.raises(ProtocolError):
                server.total()
        if stage is not Stage.SETUP:
            with pytest.raises(ProtocolError):
                server.start()


@pytest.mark.parametrize("stage", SERVER_STAGES)
def test_an_abort_in_every_stage_of_the_server(stage: Stage) -> None:
    with folder() as place:
        play = Play(Path(place))
        play.server_in(stage)
        server = play.server
        told = server.abort()
        assert server.stage is (Stage.DONE if stage is Stage.DONE else Stage.ABORTED)
        assert [one.to for one in told] == ([] if stage is Stage.DONE else [1, 2, 3])
