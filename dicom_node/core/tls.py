"""Mutual TLS 1.3 (RFC 8446) between organisations; a peer is who its certificate's SHA-256 fingerprint says it is.

Stricter than usual in two ways. Nothing below TLS 1.3 is spoken. A certificate that a known authority signed is not
enough: its fingerprint must be the one that was agreed on, so no authority can let a stranger in. In return the host
name is not compared: the fingerprint already names one key. Expiry and signature are checked as always,
and revocation (RFC 5280, section 5) where the settings name a list.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Annotated

from pydantic import Field

from .errors import ConfigError, ProtocolError, Unavailable, VeilRayError
from .settings import TlsSettings

#: A certificate's fingerprint in settings: SHA-256 of its DER form, hexadecimal.
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED (OpenSSL x509_vfy.h; so are the next three).
OUT_OF_DATE = (9, 10)
REVOKED = 23
#: X509_V_ERR_CRL_NOT_YET_VALID and X509_V_ERR_CRL_HAS_EXPIRED.
CRL_OUT_OF_DATE = (11, 12)
#: X509_V_ERR_UNABLE_TO_GET_CRL, and X509_V_ERR_CRL_SIGNATURE_FAILURE: a list, but not this authority's.
CRL_MISSING = (3, 8)
SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),  # a message is one write; waiting for more only adds delay
    # Connections may wait for minutes: firewalls must not forget them, and a vanished peer must be noticed.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Make the context of a service that lets in only callers with a certificate.

    Raises
    ------
    ConfigError
        A file cannot be read, or the key does not belong to the certificate.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings)
    context.num_tickets = 0  # no resumption: every connection proves its key anew
    return context


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """Make the context of connections that we open; whom they reach is checked by `connect`.

    Raises
    ------
    ConfigError
        A file cannot be read, or the key does not belong to the certificate.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, settings)


def _context(protocol: ssl._SSLMethod, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    load_material(context, settings)
    return context


def load_material(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Give a context this side's certificate, the authorities of the other side and what they have revoked.

    Raises
    ------
    ConfigError
        A file cannot be read, or the key does not belong to the certificate.
    """
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        context.load_verify_locations(settings.ca)
        if settings.crl is not None:
            context.load_verify_locations(settings.crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in settings.files)
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"cannot use the TLS files {files}: {reason}", code="tls-files") from error


def certificate(path: Path) -> bytes:
    """Read the first certificate in a PEM file, in DER form.

    Raises
    ------
    ConfigError
        The file cannot be read or holds no certificate.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the certificate {path}", code="tls-files") from error
    found = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL)
    if found is None:
        raise ConfigError(f"{path} holds no PEM certificate", code="tls-files")
    return ssl.PEM_cert_to_DER_cert(found[0])


def fingerprint(path: Path) -> str:
    """Compute the fingerprint of the first certificate in a PEM file: SHA-256 of its DER form, 64 hexadecimal digits.

    Raises
    ------
    ConfigError
        As `certificate`.
    """
    return hashlib.sha256(certificate(path)).hexdigest()


def peer_fingerprint(connection: ssl.SSLSocket) -> str:
    """Compute the fingerprint of the certificate that the other side of an open connection showed."""
    der = connection.getpeercert(binary_form=True)
    if der is None:
        raise ProtocolError("the peer showed no certificate", code="no-certificate")
    return hashlib.sha256(der).hexdigest()


def connect(host: str, port: int, context: ssl.SSLContext, expected: str, timeout_s: float) -> ssl.SSLSocket:
    """Dial a service and make sure that it is the expected one before a byte of ours is sent.

    Parameters
    ----------
    context : ssl.SSLContext
        From `client_context`.
    expected : str
        Fingerprint of the service's certificate.
    timeout_s : float
        For the connection, then for the handshake, seconds.

    Raises
    ------
    Unavailable
        Nobody answers, or not in time.
    ProtocolError
        The handshake failed (``tls-handshake``, ``certificate-out-of-date``), or it is another certificate
        (``wrong-certificate``).
    """
    try:
        plain = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        reason = error.strerror or "no answer in time"
        raise Unavailable(f"cannot reach {host} port {port}: {reason}", code="unreachable") from error
    connection = handshake(plain, context, timeout_s, server_side=False)
    if peer_fingerprint(connection) != expected:
        connection.close()
        raise ProtocolError(
            f"{host} port {port} showed another certificate than the one agreed on: compare the fingerprint in the "
            "settings with the peer's administrator",
            code="wrong-certificate",
        )
    return connection


def handshake(plain: socket.socket, context: ssl.SSLContext, timeout_s: float, *, server_side: bool) -> ssl.SSLSocket:
    """Turn a connected socket into a TLS connection; on failure it is closed.

    Parameters
    ----------
    timeout_s : float
        For the whole handshake, seconds: a caller that stays silent holds nothing for longer.

    Raises
    ------
    Unavailable, ProtocolError
        As `connect`.
    """
    plain.settimeout(timeout_s)
    for level, option, value in SOCKET_OPTIONS:
        plain.setsockopt(level, option, value)
    try:
        connection = context.wrap_socket(plain, server_side=server_side, do_handshake_on_connect=False)
    except OSError as error:  # the caller is gone already
        plain.close()
        raise explain(error) from error
    try:
        connection.do_handshake()
    except OSError as error:
        if server_side and isinstance(error, ssl.SSLError):
            linger(connection)
        connection.close()
        raise explain(error) from error
    return connection


def linger(connection: socket.socket, seconds: float = 1.0) -> None:
    """Let the peer read our last words before a close: unread input would make TCP reset the connection instead."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):  # the peer is gone: nobody is left to read them
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not socket.socket.recv(connection, 1 << 16):  # below TLS: what comes is thrown away
                break


def explain(error: OSError) -> VeilRayError:
    """Name what went wrong on a TLS connection: `Unavailable` where waiting may help, else `ProtocolError`.

    In TLS 1.3 a client ends its handshake before the server has judged the client's certificate, so a refusal arrives
    with the first read: pass errors of reading and writing here, too.
    """
    if isinstance(error, TimeoutError):
        return Unavailable("the peer did not answer in time", code="peer-timeout")
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in OUT_OF_DATE:
            return ProtocolError(
                "the peer's certificate has expired or is not valid yet: renew it, or set this machine's clock",
                code="certificate-out-of-date",
            )
        if error.verify_code == REVOKED:
            return ProtocolError("the peer's certificate was revoked by its authority", code="certificate-revoked")
        if error.verify_code in CRL_OUT_OF_DATE:
            return Unavailable(
                "the list of revoked certificates has expired or is not valid yet: fetch the authority's newest one, "
                "or set this machine's clock",
                code="crl-out-of-date",
            )
        if error.verify_code in CRL_MISSING:
            return ConfigError(
                "tls.crl holds no list of the authority that signed the peer's certificate: add it", code="crl-missing"
            )
        return ProtocolError("the peer's certificate is not signed by an authority we know", code="unknown-authority")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Unavailable("the peer closed the connection", code="connection-closed")
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason or "unknown").lower().replace("_", " ")
        return ProtocolError(f"the TLS connection failed: {reason}", code="tls-handshake")
    return Unavailable(f"the connection broke: {error.strerror or type(error).__name__}", code="connection-closed")
