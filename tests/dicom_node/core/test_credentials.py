"""Certificates that change while a service runs: taken up when they are good, and only then."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from dicom_node.core.credentials import Credentials, Watched
from dicom_node.core.errors import ConfigError
from dicom_node.core.pki import Authority
from dicom_node.core.settings import TlsSettings


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def der(settings: TlsSettings) -> bytes:
    return ssl.PEM_cert_to_DER_cert(settings.certificate.read_text())


def test_a_file_counts_as_changed_once_when_it_is_written_replaced_made_or_removed(tmp_path):
    path, absent = tmp_path / "one", tmp_path / "absent"
    path.write_text("a")
    watched = Watched([path, absent])
    assert not watched.changed()
    steps = (
        lambda: path.write_text("ab"),
        lambda: absent.write_text(""),
        lambda: absent.replace(path),
        path.unlink,
    )
    for step in steps:
        step()
        assert watched.changed()
        assert not watched.changed()


def test_a_certificate_revoked_later_is_known_once_the_list_is_read_again(authority):
    ours, other = authority.issue("ours"), authority.issue("other")
    held = Credentials(ours.model_copy(update={"crl": authority.revoke()}))
    before = held.server
    assert not held.refresh()
    assert not held.revoked(der(other))
    authority.revoke(other.certificate)
    assert held.refresh()
    assert held.server is not before
    assert held.revoked(der(other))
    assert not held.revoked(der(ours))


def test_a_serial_number_of_another_authority_is_not_taken_for_a_revoked_one(authority, tmp_path):
    ours, other = authority.issue("ours"), authority.issue("other")
    elsewhere = Authority(tmp_path / "elsewhere")
    elsewhere._name = x509.Name([])  # throw-away authorities all have one name
    held = Credentials(ours.model_copy(update={"crl": elsewhere.revoke(other.certificate)}))
    assert not held.revoked(der(other))


@pytest.mark.parametrize("content", [b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_a_bad_list_keeps_the_old_one_and_is_told_once(authority, content):
    ours, other = authority.issue("ours"), authority.issue("other")
    crl = authority.revoke(other.certificate)
    held = Credentials(ours.model_copy(update={"crl": crl}))
    before = (held.server, held.client)
    crl.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        held.refresh()
    assert caught.value.code == "tls-files"
    assert not held.refresh()
    assert (held.server, held.client) == before
    assert held.revoked(der(other))


def test_a_renewed_certificate_and_other_files_are_taken_up(authority):
    held = Credentials(authority.issue("ours"))
    before = held.client
    renewed = authority.issue("ours")
    assert held.refresh()
    assert held.client is not before
    with pytest.raises(ConfigError):
        held.refresh(renewed.model_copy(update={"key": renewed.certificate}))
    assert not held.refresh()
    assert held.refresh(authority.issue("second"))
