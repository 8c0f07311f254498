"""Mutual TLS 1.3: who gets in, and how each failure is named."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.core import tls
from dicom_node.core.errors import ConfigError, ProtocolError, Unavailable, VeilRayError
from dicom_node.core.pki import Authority
from dicom_node.core.settings import TlsSettings

Outcome = list[ssl.SSLSocket | VeilRayError]


@contextmanager
def service(settings: TlsSettings, timeout_s: float = 5.0) -> Iterator[tuple[int, Callable[[], ssl.SSLSocket]]]:
    """Accept one connection; the second value waits for its handshake and raises what it raised."""
    outcome: Outcome = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            plain, _ = listener.accept()
            try:
                outcome.append(tls.handshake(plain, tls.server_context(settings), timeout_s, server_side=True))
            except VeilRayError as error:
                outcome.append(error)

        thread = threading.Thread(target=accept)
        thread.start()

        def finish() -> ssl.SSLSocket:
            thread.join()
            (found,) = outcome
            if isinstance(found, VeilRayError):
                raise found
            return found

        try:
            yield listener.getsockname()[1], finish
        finally:
            thread.join()
            for one in outcome:
                if isinstance(one, ssl.SSLSocket):
                    one.close()


def dial(port: int, own: TlsSettings, expected: TlsSettings) -> ssl.SSLSocket:
    return tls.connect("127.0.0.1", port, tls.client_context(own), tls.fingerprint(expected.certificate), 5.0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def test_both_sides_know_each_other_by_fingerprint_over_tls_1_3(authority):
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    with service(theirs) as (port, finish), dial(port, ours, theirs) as connection:
        assert connection.version() == "TLSv1.3"
        assert tls.peer_fingerprint(connection) == tls.fingerprint(theirs.certificate)
        assert tls.peer_fingerprint(finish()) == tls.fingerprint(ours.certificate)


def test_another_certificate_of_the_same_authority_is_not_taken_for_the_peer(authority):
    ours, theirs, other = (authority.issue(name) for name in ("ours", "theirs", "other"))
    with service(other) as (port, _), pytest.raises(ProtocolError) as caught:
        dial(port, ours, theirs)
    assert caught.value.code == "wrong-certificate"


def test_a_peer_of_an_unknown_authority_is_refused(authority, tmp_path):
    ours, theirs = authority.issue("ours"), Authority(tmp_path / "elsewhere").issue("theirs")
    with service(theirs) as (port, finish):
        with pytest.raises(ProtocolError) as caught:
            dial(port, ours, theirs)
        assert caught.value.code == "unknown-authority"
        with pytest.raises(VeilRayError):
            finish()


def test_a_caller_of_an_unknown_authority_is_refused(authority, tmp_path):
    theirs = authority.issue("theirs")
    stranger = Authority(tmp_path / "elsewhere").issue("stranger").model_copy(update={"ca": authority.path})
    with service(theirs) as (port, finish), dial(port, stranger, theirs) as connection:
        with pytest.raises(ProtocolError) as caught:
            finish()
        assert caught.value.code == "unknown-authority"
        with pytest.raises(ssl.SSLError) as refused:  # the client hears of it with its first read
            connection.recv(1)
        assert isinstance(tls.explain(refused.value), ProtocolError)


def test_an_expired_certificate_is_named_as_such_on_both_sides(authority):
    old = authority.issue("old", lifetime=datetime.timedelta(minutes=-1))
    good = authority.issue("good")
    with service(old) as (port, finish):
        with pytest.raises(ProtocolError) as caught:
            dial(port, good, old)
        assert caught.value.code == "certificate-out-of-date"
        with pytest.raises(ProtocolError):
            finish()
    with service(good) as (port, finish), dial(port, old, good):
        with pytest.raises(ProtocolError) as caught:
            finish()
        assert caught.value.code == "certificate-out-of-date"


DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("lists", "code"),
    [
        (lambda own, other, path: own.revoke(path), "certificate-revoked"),
        (lambda own, other, path: own.revoke(lifetime=-DAY), "crl-out-of-date"),
        (lambda own, other, path: own.revoke(path, lifetime=-DAY), "crl-out-of-date"),
        (lambda own, other, path: other.revoke(), "crl-missing"),
    ],
    ids=["revoked", "expired list", "revoked on an expired list", "list of another authority"],
)
def test_a_list_of_revoked_certificates_keeps_out_on_both_sides(authority, tmp_path, lists, code):
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    judging = theirs.model_copy(update={"crl": lists(authority, Authority(tmp_path / "elsewhere"), ours.certificate)})
    with service(judging) as (port, finish), dial(port, ours, theirs), pytest.raises(VeilRayError) as called:
        finish()
    with service(ours) as (port, finish):
        with pytest.raises(VeilRayError) as calling:
            dial(port, judging, ours)
        with pytest.raises(VeilRayError):
            finish()
    assert (called.value.code, calling.value.code) == (code, code)


def test_who_is_not_on_the_list_of_revoked_certificates_comes_in(authority):
    ours, theirs, other = (authority.issue(name) for name in ("ours", "theirs", "other"))
    crl = {"crl": authority.revoke(other.certificate)}
    files = [one.model_copy(update=crl) for one in (ours, theirs)]
    with service(files[1]) as (port, finish), dial(port, *files):
        assert tls.peer_fingerprint(finish()) == tls.fingerprint(ours.certificate)


def test_a_caller_without_a_certificate_is_refused(authority):
    theirs = authority.issue("theirs")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(authority.path)
    with service(theirs) as (port, finish), socket.create_connection(("127.0.0.1", port)) as plain:
        with bare.wrap_socket(plain, server_hostname="localhost"), pytest.raises(ProtocolError) as caught:
            finish()
        assert caught.value.code == "tls-handshake"


def test_tls_1_2_is_not_spoken(authority):
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    old = tls.client_context(ours)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with service(theirs) as (port, finish), socket.create_connection(("127.0.0.1", port)) as plain:
        with pytest.raises(ssl.SSLError):
            old.wrap_socket(plain)
        with pytest.raises(ProtocolError) as caught:
            finish()
        assert caught.value.code == "tls-handshake"


def test_a_caller_that_stays_silent_is_dropped_in_time(authority):
    with (
        service(authority.issue("theirs"), timeout_s=0.2) as (port, finish),
        socket.create_connection(("127.0.0.1", port)),
        pytest.raises(Unavailable) as caught,
    ):
        finish()
    assert caught.value.code == "peer-timeout"


def test_a_caller_that_does_not_speak_tls_is_refused(authority):
    with (
        service(authority.issue("theirs")) as (port, finish),
        socket.create_connection(("127.0.0.1", port)) as plain,
    ):
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ProtocolError) as caught:
            finish()
        assert caught.value.code == "tls-handshake"


def test_a_service_that_is_away_is_unavailable(authority):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable) as caught:
        dial(port, authority.issue("ours"), authority.issue("theirs"))
    assert caught.value.code == "unreachable"


def test_files_that_do_not_fit_are_a_configuration_error(authority, tmp_path):
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    absent = tmp_path / "absent.pem"
    for wrong in ({"key": theirs.key}, {"certificate": absent}, {"ca": ours.key}, {"crl": absent}, {"crl": ours.key}):
        with pytest.raises(ConfigError) as caught:
            tls.client_context(ours.model_copy(update=wrong))
        assert caught.value.code == "tls-files"
    for path in (ours.key, tmp_path / "absent.pem"):
        with pytest.raises(ConfigError):
            tls.fingerprint(path)


def test_keys_are_readable_by_their_owner_alone(authority):
    assert authority.issue("ours").key.stat().st_mode & 0o777 == 0o600
