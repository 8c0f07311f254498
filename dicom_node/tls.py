"""The TLS profile of our DICOM connections, opened and taken (PS3.15 B.9 to B.11, BCP 195 / RFC 9325)."""

from __future__ import annotations

import ssl

from .core.settings import TlsSettings
from .core.tls import load_material


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """Build the context of a connection in which both sides show a certificate.

    Stricter than most DICOM toolkits, which accept any certificate of a known authority: the peer's certificate must
    also name the host that was dialled (``subjectAltName``), or any machine of the department could pose as the
    archive.

    Raises
    ------
    ConfigError
        A file cannot be read, or the key does not belong to the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_material(context, settings)
    return context


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Build the context of our DICOM listener: TLS 1.2 or 1.3, and every caller shows a certificate of our authority.

    TLS 1.2 is kept because the DICOM profiles allow it and modalities live long; its cipher suites are the forward
    secret AEAD ones that BCP 195 asks for.

    Raises
    ------
    ConfigError
        A file cannot be read, or the key does not belong to the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM")
    context.verify_mode = ssl.CERT_REQUIRED
    load_material(context, settings)
    return context
