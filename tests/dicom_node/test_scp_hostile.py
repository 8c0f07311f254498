"""Peers that are silent, slow, greedy, wrong or hostile cost their own connection alone."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node.core.database import audit_event, instance
from dicom_node.core.errors import ConfigError
from dicom_node.core.pki import Authority
from dicom_node.scp import admission
from dicom_node.tls import client_context
from tests import raw_peer, scp_process
from tests.dicom_node.test_scp import Node, _until, start  # noqa: F401  (the fixture)
from tests.raw_peer import ABORTED, ACCEPTED, DX, EXPLICIT, REJECTED, VERIFICATION, RawPeer, encode, image, pdu, pdv

Start = Callable[..., Node]
ECHO = [(VERIFICATION, [EXPLICIT])]


def alive(node: Node) -> bool:
    """A well-behaved peer is served, quickly."""
    with RawPeer(node.port, timeout=5) as peer:
        return peer.associate(ECHO) == ACCEPTED and peer.echo() == 0


@pytest.mark.parametrize(
    ("calling", "called", "reason"), [("STRANGER", "VEILRAY", 3), ("STORESCU", "OTHER", 7), ("storescu", "VEILRAY", 3)]
)
def test_unknown_titles_are_rejected_and_audited(start: Start, calling: str, called: str, reason: int) -> None:  # noqa: F811
    node = start()
    with RawPeer(node.port) as peer:
        peer.socket.sendall(raw_peer.association_request(ECHO, calling=calling, called=called))
        assert peer.read() == (REJECTED, bytes([0, 1, 1, reason]))
    _until(lambda: len(node.rows(audit_event)) == 1)
    (event,) = node.rows(audit_event)
    assert (event.event_id, event.event_type, event.detail["ae_title"]) == ("110113", "association-rejected", calling)


def test_a_known_title_from_another_address_is_rejected(start: Start) -> None:  # noqa: F811
    node = start(peers=[{"ae_title": "STORESCU", "addresses": ["10.0.0.0/8"]}])
    with RawPeer(node.port) as peer:
        assert peer.associate(ECHO) == REJECTED


def test_the_same_refusal_is_audited_once_a_minute() -> None:
    now = [0.0]
    limit = admission.AlertLimit(lambda: now[0])
    assert [limit.passes("10.0.0.1", "x") for _ in range(3)] == [1, 0, 0]
    assert limit.passes("10.0.0.2", "x") == 1
    now[0] = admission.ALERT_EVERY_S
    assert limit.passes("10.0.0.1", "x") == 3


def test_a_wrong_address_in_the_settings_is_told(tmp_path: Path) -> None:
    settings = scp_process.site(tmp_path, peers=[{"ae_title": "A", "addresses": ["modality.local"]}])
    with pytest.raises(ConfigError, match=r"scp\.peers\.addresses"):
        admission.Whitelist(settings.scp)


def test_associations_are_capped_and_the_next_is_told_to_come_later(start: Start) -> None:  # noqa: F811
    node = start(maximum_associations=5, maximum_associations_per_address=2)
    with RawPeer(node.port) as first, RawPeer(node.port) as second, RawPeer(node.port) as third:
        assert (first.associate(ECHO), second.associate(ECHO)) == (ACCEPTED, ACCEPTED)
        third.socket.sendall(raw_peer.association_request(ECHO))
        assert third.read() == (REJECTED, bytes([0, 2, 3, 2]))
        first.release()
    _until(lambda: alive(node))


def test_forty_silent_clients_keep_nobody_out(start: Start) -> None:  # noqa: F811
    node = start(maximum_associations=4)
    silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(40)]
    assert alive(node)
    for connection in silent:
        connection.close()


def test_a_silent_client_is_dropped_after_the_time_for_negotiation(start: Start) -> None:  # noqa: F811
    node = start(acse_timeout_s=0.2)
    with RawPeer(node.port, timeout=5) as peer:
        assert peer.read()[0] == 0  # closed without a word, as PS3.8 Table 9-10 has it (AA-2)


def test_an_idle_association_is_ended(start: Start) -> None:  # noqa: F811
    node = start(network_timeout_s=0.3)
    with RawPeer(node.port, timeout=5) as peer:
        assert peer.associate(ECHO) == ACCEPTED
        assert peer.read()[0] == ABORTED


def test_a_pdu_that_drips_is_cut_off(start: Start) -> None:  # noqa: F811
    node = start(network_timeout_s=0.5)
    with RawPeer(node.port, timeout=5) as peer:
        assert peer.associate() == ACCEPTED
        peer.socket.sendall(struct.pack(">BxI", 4, 1000))
        began = time.monotonic()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            for _ in range(60):  # each byte comes in time, the whole never would
                peer.socket.sendall(b"\0")
                time.sleep(0.1)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        pdu(4, b""),
        pdu(1, b""),
        pdu(1, b"\0\1" + b"\xff" * 100),
        pdu(1, os.urandom(3000)),
        struct.pack(">BxI", 1, 2**31 - 1) + b"\0" * 100,
        bytes(6),
    ],
    ids=["http", "data first", "empty request", "bad request", "noise", "2 GiB request", "type 0"],
)
def test_garbage_before_the_association_is_answered_by_an_abort(start: Start, garbage: bytes) -> None:  # noqa: F811
    node = start()
    with RawPeer(node.port, timeout=5) as peer:
        peer.socket.sendall(garbage)
        assert peer.read()[0] == ABORTED
    assert alive(node)


@pytest.mark.parametrize(
    "wrong",
    [
        struct.pack(">BxI", 4, 2**31 - 1),
        pdu(4, b"\0\0\0\xff\1\3abc"),
        pdu(4, b"\0\0\0"),
        pdv(b"\0" * 20, command=True, last=True),
        pdv(b"data", command=False, last=True),
        pdv(raw_peer.command(1, DX, "1.2"), command=True, last=True, context_id=99),
        pdv(raw_peer.command(0x8001, DX, "1.2"), command=True, last=True),
        raw_peer.association_request([(DX, [EXPLICIT])]),
        pdu(6, b"\0\0\0\0"),
        b"".join(pdv(b"\0" * 16000, command=True, last=False) for _ in range(6)),
        pdv(raw_peer.command(0x20, DX, data_set=True), command=True, last=True)
        + b"".join(pdv(b"\0" * 16000, command=False, last=False) for _ in range(6)),
        pdv(raw_peer.command(1, DX, "1.2", data_set=True), command=True, last=True)
        + pdv(raw_peer.command(1, DX, "1.2"), command=True, last=True),
    ],
    ids=[
        *("2 GiB PDU", "long PDV", "short PDV", "empty command", "data first", "unknown context"),
        *("response", "second request", "release answer", "endless command", "endless query", "command inside data"),
    ],
)
def test_a_violation_inside_an_association_is_answered_by_an_abort(start: Start, wrong: bytes) -> None:  # noqa: F811
    node = start()
    with RawPeer(node.port, timeout=5) as peer:
        assert peer.associate() == ACCEPTED
        peer.socket.sendall(wrong)
        assert peer.read()[0] == ABORTED
    assert alive(node)
    _until(lambda: node.temporary_files() == [])


@pytest.mark.parametrize("how", ["reset", "close", "abort"])
def test_a_sender_that_dies_inside_a_data_set_leaves_nothing(start: Start, how: str) -> None:  # noqa: F811
    node = start()
    dataset, uid = image("one", side=200)
    peer = RawPeer(node.port)
    peer.associate()
    peer.send_command(raw_peer.command(1, DX, uid, data_set=True))
    peer.socket.sendall(pdv(encode(dataset)[:20_000], command=False, last=False) + struct.pack(">BxI", 4, 9000))
    _until(lambda: len(node.temporary_files()) == 1)
    if how == "abort":
        peer.socket.sendall(b"\0" * 9000 + pdu(7, b"\0\0\0\0"))
    if how == "reset":
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    _until(lambda: node.temporary_files() == [])
    assert node.rows(instance) == []
    assert alive(node)


def test_more_than_1024_descriptors_are_no_limit(start: Start) -> None:  # noqa: F811
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip("this process may not open 1300 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    node = start()
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        dataset, uid = image("one")
        with RawPeer(node.port) as peer:
            assert peer.associate() == ACCEPTED
            assert peer.store(encode(dataset), uid) == 0
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_stopped_service_has_closed_every_connection(start: Start) -> None:  # noqa: F811
    node = start()
    port = node.port
    with RawPeer(port) as peer:
        assert peer.associate() == ACCEPTED
        node.scp.stop()
        assert peer.read()[0] == 0
    with pytest.raises(ConnectionRefusedError):
        RawPeer(port)


def test_a_store_in_progress_is_answered_before_the_service_stops(start: Start) -> None:  # noqa: F811
    node = start()
    dataset, uid = image("one")
    with RawPeer(node.port) as peer:
        peer.associate()
        stopping = threading.Thread(target=node.scp.stop)
        with node.database.write():  # nobody else may write meanwhile, so the store has to wait
            peer.send_command(raw_peer.command(1, DX, uid, data_set=True))
            peer.socket.sendall(pdv(encode(dataset), command=False, last=True))
            _until(lambda: any(path.is_file() for path in (node.state_dir / "instances").rglob("*")))
            stopping.start()
            time.sleep(0.1)
        assert peer.status() == 0
        assert peer.read()[0] == 0
        stopping.join()
    assert len(node.rows(instance)) == 1


def test_connections_of_every_kind_leave_neither_thread_nor_descriptor(start: Start) -> None:  # noqa: F811
    node = start()
    threads = threading.active_count()

    def call_in_every_way() -> int:
        request = raw_peer.association_request(ECHO, called="OTHER")
        for beginning in (b"", b"noise", struct.pack(">BxI", 1, 500), request):
            for reset in (0, 1):
                with RawPeer(node.port) as peer:
                    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
                    peer.socket.sendall(beginning)
        assert alive(node)
        _until(lambda: threading.active_count() == threads)
        return len(list(Path("/proc/self/fd").iterdir()))

    once = call_in_every_way()  # the database's connections are opened on demand
    assert call_in_every_way() == once


FULL_DISK = """
import resource, sys
from pathlib import Path
from dicom_node.core import logs
from tests import scp_process
from tests.dicom_node.test_scp import Node
from tests.raw_peer import RawPeer, encode, image
logs.configure("test")
node = Node(Path(sys.argv[1]))
large, uid = image("large", side=800)
small, other = image("small")
with RawPeer(node.port) as peer:
    peer.associate()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    print(hex(peer.store(encode(large), uid)), hex(peer.store(encode(small), other)), len(node.temporary_files()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(hex(peer.store(encode(large), uid)))
node.stop()
"""


def test_a_full_disk_is_told_and_the_association_goes_on(tmp_path: Path) -> None:
    """RLIMIT_FSIZE lets write() take a part of the data and then fail, as a file system does that runs full."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, cwd=scp_process.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["0xa700 0x0 0", "0x0"], done.stderr


def test_a_database_that_is_away_is_told_and_nothing_is_acknowledged(start: Start) -> None:  # noqa: F811
    node = start()
    dataset, uid = image("one")
    with RawPeer(node.port) as peer:
        peer.associate()
        with node.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE instance RENAME TO away")
        assert peer.store(encode(dataset), uid) == 0xA700
        with node.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO instance")
        assert peer.store(encode(dataset), uid) == 0
    assert len(node.rows(instance)) == 1


def tls_peer(port: int, context: ssl.SSLContext) -> RawPeer:
    peer = RawPeer(port)
    peer.socket = context.wrap_socket(peer.socket, server_hostname="127.0.0.1")
    return peer


def test_tls_serves_a_known_certificate_beside_silent_and_unknown_clients(start: Start, tmp_path: Path) -> None:  # noqa: F811
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    node = start(tls=authority.issue("node"), acse_timeout_s=1.0)
    silent = socket.create_connection(("127.0.0.1", node.port))
    dataset, uid = image("one", side=300)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = client_context(authority.issue("modality"))
        context.maximum_version = version
        with tls_peer(node.port, context) as peer:
            assert peer.socket.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version]
            assert peer.associate() == ACCEPTED
            assert peer.store(encode(dataset), uid) == 0
            assert peer.release() == 6
    stranger = client_context(other.issue("stranger").model_copy(update={"ca": authority.path}))
    stranger.maximum_version = ssl.TLSVersion.TLSv1_2  # with 1.3 the refusal would only come with the first read
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        tls_peer(node.port, stranger)
    with RawPeer(node.port) as plain:
        plain.socket.sendall(raw_peer.association_request(ECHO))
        assert plain.read()[0] != ACCEPTED
    silent.settimeout(5)
    assert silent.recv(1) == b""  # dropped after the time for negotiation
    silent.close()
    _until(lambda: "tls-failed" in {event.event_type for event in node.rows(audit_event)})
