"""Certificates of a running service: taken up anew when their files change (RFC 5280 for the lists of revoked ones)."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509

from . import logs, tls
from .errors import ConfigError
from .settings import TlsSettings

log = logs.get(__name__)

PEM_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


class Watched:
    """Tells whether one of some files was replaced or written since the last look.

    Parameters
    ----------
    paths : iterable of Path
        Files that need not exist.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> bool:
        """Look again; what is found is what the next look compares with."""
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_mark(path) for path in self._paths]


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # away for now, or for good: whoever reads it next says so
    return found.st_mtime_ns, found.st_size, found.st_ino


class Credentials:
    """What one endpoint shows to its peers, and by what it judges theirs.

    Parameters
    ----------
    settings : TlsSettings

    Attributes
    ----------
    server, client : ssl.SSLContext
        For connections that are taken and for those that are opened. Take them anew for each connection.

    Raises
    ------
    ConfigError
        A file cannot be read or used (``tls-files``).
    """

    server: ssl.SSLContext
    client: ssl.SSLContext

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._watched = Watched(settings.files)
        self._load(settings)

    def refresh(self, settings: TlsSettings | None = None) -> bool:
        """Take up what changed; return whether anything did.

        Parameters
        ----------
        settings : TlsSettings, optional
            Other files from now on.

        Raises
        ------
        ConfigError
            A file cannot be used: everything stays as it was, until one of the files changes again.
        """
        wanted = settings or self._settings
        if wanted != self._settings:
            self._settings, self._watched = wanted, Watched(wanted.files)
        elif not self._watched.changed():
            return False
        self._load(wanted)
        return True

    def follow(self) -> bool:
        """Take up what changed where nobody can be told but the log; return whether anything did."""
        try:
            changed = self.refresh()
        except ConfigError as error:
            log.error("certificates-not-reloaded", **logs.describe(error))
            return False
        if changed:
            log.info("certificates-reloaded")
        return changed

    def revoked(self, certificate: bytes) -> bool:
        """Tell whether a certificate (DER) is on the present list: it may have been added after its handshake."""
        if not self._revoked:
            return False
        found = x509.load_der_x509_certificate(certificate)
        return (found.issuer, found.serial_number) in self._revoked

    def _load(self, settings: TlsSettings) -> None:
        server, client = tls.server_context(settings), tls.client_context(settings)
        revoked = frozenset[tuple[x509.Name, int]]() if settings.crl is None else _serials(settings.crl)
        self.server, self.client, self._revoked = server, client, revoked


def _serials(path: Path) -> frozenset[tuple[x509.Name, int]]:
    """Issuers and serial numbers on the lists of a PEM file; their signatures are OpenSSL's to check."""
    try:
        lists = [x509.load_pem_x509_crl(found) for found in PEM_LIST.findall(path.read_bytes())]
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the list of revoked certificates {path}", code="tls-files") from error
    if not lists:
        raise ConfigError(f"{path} holds no list of revoked certificates in PEM form", code="tls-files")
    return frozenset((one.issuer, entry.serial_number) for one in lists for entry in one)
