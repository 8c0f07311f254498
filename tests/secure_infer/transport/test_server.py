"""Limits and time-outs of connections: one bad caller costs itself and nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.core import tls
from dicom_node.core.credentials import Credentials
from dicom_node.core.errors import ProtocolError, Unavailable, VeilRayError
from dicom_node.core.pki import Authority
from dicom_node.core.settings import EndpointSettings, TlsSettings
from secure_infer.protocol.messages import Failure, Open, Output, Ready
from secure_infer.transport.channel import LENGTH, ONE_RECORD, Channel
from secure_infer.transport.server import Limits, Server

ASK = Open(b"B" * 16, b"m" * 32, bytes(32), 0)
ANSWER = Ready(b"B" * 16, 60, bytes(100))
LARGE = 1 << 12
MUCH = Ready(b"B" * 16, 60, bytes(range(256)) * (1 << 15))


def first_send(channel: Channel) -> None:
    """Send much more than any buffer holds, and only then listen."""
    channel.send(MUCH)
    channel.send(channel.receive(len(MUCH.encode())))
    channel.receive(LARGE)


def answer(channel: Channel) -> None:
    """Answer every message until the caller leaves."""
    while True:
        channel.receive(LARGE)
        channel.send(ANSWER)


class Site:
    """A server and the certificates of two allowed callers and a stranger."""

    def __init__(self, folder: Path, limits: Limits, handle: Callable[[Channel], None]) -> None:
        authority = Authority(folder / "pki")
        self.tls: dict[str, TlsSettings] = {
            name: authority.issue(name) for name in ("server", "one", "two", "stranger")
        }
        self.prints = {name: tls.fingerprint(files.certificate) for name, files in self.tls.items()}
        peers = frozenset({self.prints["one"], self.prints["two"]})
        self.crl = authority.revoke()
        self.authority = authority
        self.credentials = Credentials(self.tls["server"].model_copy(update={"crl": self.crl}))
        self.server = Server("127.0.0.1", 0, self.credentials, peers, limits, handle)
        self.endpoint = EndpointSettings(host="127.0.0.1", port=self.server.port, fingerprint=self.prints["server"])

    def dial(self, who: str = "one", timeout_s: float = 5.0) -> Channel:
        return Channel.dial(self.endpoint, tls.client_context(self.tls[who]), "the server", timeout_s)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(handle: Callable[[Channel], None] = answer, **limits: float) -> Site:
        given = {"connections": 8, "connections_per_peer": 4, "handshake_s": 0.5, "message_s": 0.5, **limits}
        site = Site(tmp_path, Limits(**given), handle)
        sites.append(site)
        site.server.start()
        return site

    yield make
    for site in sites:
        site.server.stop()
        assert not site.server.alive


def exchange(channel: Channel) -> None:
    channel.send(ASK)
    assert channel.receive(LARGE) == ANSWER


@contextmanager
def ends_with(code: str) -> Iterator[None]:
    with pytest.raises(VeilRayError) as caught:
        yield
    assert caught.value.code == code


def test_messages_go_both_ways_and_are_counted(serve):
    with serve().dial() as channel:
        exchange(channel)
        exchange(channel)
        assert channel.sent == 2 * (LENGTH.size + len(ASK.encode()))
        assert channel.received == 2 * (LENGTH.size + len(ANSWER.encode()))


def test_a_certificate_that_is_not_on_the_list_is_told_so(serve):
    with serve().dial("stranger") as channel, ends_with("certificate-not-allowed"):
        exchange(channel)


@pytest.mark.parametrize("how", ["list", "crl"])
def test_who_is_taken_off_the_list_or_revoked_loses_its_open_connections_and_the_others_do_not(serve, how):
    site = serve(message_s=30.0)
    with site.dial() as lost, site.dial("two") as kept:
        exchange(lost)
        exchange(kept)
        assert site.server.sweep() == []
        if how == "list":
            site.server.admit(frozenset({site.prints["two"]}))
            code = "certificate-not-allowed"
        else:
            site.authority.revoke(site.tls["one"].certificate)
            assert site.credentials.refresh()
            code = "certificate-revoked"
        assert site.server.sweep() == [(site.prints["one"], code)]
        with ends_with("connection-closed"):
            lost.receive(LARGE)
        exchange(kept)
        with site.dial() as again, ends_with("tls-handshake" if how == "crl" else code):
            exchange(again)


def test_one_certificate_has_so_many_connections_and_another_one_its_own(serve):
    site = serve(connections_per_peer=2)
    with site.dial() as first, site.dial() as second:
        exchange(first)
        exchange(second)
        with site.dial() as third, ends_with("too-many-connections"):
            exchange(third)
        with site.dial("two") as other:
            exchange(other)
    deadline = time.monotonic() + 60
    while not works(site):  # the places are free again once the server has noticed
        assert time.monotonic() < deadline


def works(site: Site) -> bool:
    try:
        with site.dial() as channel:
            exchange(channel)
    except Unavailable:
        return False
    return True


def test_beyond_all_connections_a_caller_is_turned_away(serve):
    site = serve(connections=1)
    with site.dial() as first:
        exchange(first)
        with pytest.raises(VeilRayError) as caught:
            site.dial()
        assert isinstance(caught.value, Unavailable)
        exchange(first)


def test_a_frame_that_drips_in_is_given_up_in_time(serve):
    errors: list[VeilRayError] = []

    def note(channel: Channel) -> None:
        try:
            channel.receive(LARGE)
        except VeilRayError as error:
            errors.append(error)
            channel.fail(error)

    with serve(note).dial() as channel:
        started = time.monotonic()
        frame = LENGTH.pack(len(ASK.encode())) + ASK.encode()
        with pytest.raises(VeilRayError):
            for byte in frame:  # each byte alone comes in time, the whole does not
                channel._connection.sendall(bytes([byte]))
                time.sleep(0.05)
                if errors:
                    channel.receive(LARGE)
        assert time.monotonic() - started < 2.5
    assert [error.code for error in errors] == ["peer-timeout"]


def test_a_peer_that_says_nothing_ends_the_wait_in_time(serve):
    with serve(lambda channel: threading.Event().wait(0.6)).dial(timeout_s=0.3) as channel, ends_with("peer-timeout"):
        exchange(channel)


def test_a_frame_longer_than_can_be_legal_is_refused_unread(serve):
    def long_answer(channel: Channel) -> None:
        channel.receive(LARGE)
        channel.send(Output(b"B" * 16, bytes(LARGE)))

    with serve(long_answer).dial() as channel, ends_with("frame-too-long"):
        exchange(channel)


def test_a_failure_arrives_as_the_senders_class_and_code(serve):
    def fail(channel: Channel) -> None:
        channel.fail(Unavailable("no", code="quota-exhausted"))

    with serve(fail).dial() as channel:
        with pytest.raises(Unavailable) as caught:
            exchange(channel)
        assert caught.value.code == "quota-exhausted"

    with serve(lambda channel: channel.send(Failure(7, b"odd"))).dial() as channel, pytest.raises(ProtocolError):
        exchange(channel)


def test_a_fault_of_the_handler_ends_its_connection_alone(serve):
    def fault(channel: Channel) -> None:
        if channel.receive(LARGE).bundle == b"X" * 16:
            raise ZeroDivisionError
        channel.send(ANSWER)

    site = serve(fault)
    with site.dial() as channel:
        channel.send(Open(b"X" * 16, b"m" * 32, bytes(32), 0))
        with pytest.raises(Unavailable):
            channel.receive(LARGE)
    with site.dial() as channel:
        exchange(channel)


def test_stopping_ends_a_connection_that_waits(serve):
    site = serve(lambda channel: channel.receive(LARGE, 60.0))
    with site.dial() as channel:
        threading.Timer(0.2, site.server.stop).start()
        started = time.monotonic()
        with pytest.raises(Unavailable):
            channel.receive(LARGE)
        assert time.monotonic() - started < 4.0


def test_two_sides_that_send_at_once_do_not_wait_for_each_other(serve):
    site = serve(first_send, message_s=5.0)
    with site.dial() as channel:
        channel.send(MUCH)
        assert not channel.quiet
        for _ in range(2):
            assert channel.receive(len(MUCH.encode())) == MUCH
        assert channel.quiet


def test_a_peer_that_sends_without_end_and_never_reads_is_given_up(serve, monkeypatch):
    monkeypatch.setattr("secure_infer.transport.channel.MOST_AHEAD", 1 << 20)

    def flood(channel: Channel) -> None:
        while True:
            channel.send(MUCH)

    site = serve(flood, message_s=0.5)
    with site.dial(timeout_s=0.5) as channel:
        with pytest.raises(Unavailable) as caught:
            while True:
                channel.send(MUCH)
        assert caught.value.code in {"peer-timeout", "connection-closed"}
        assert 0 < len(channel._ahead) < (1 << 20) + ONE_RECORD
