"""The TLS profile of connections that we open (PS3.15 B.9 to B.11, BCP 195 / RFC 9325)."""

from __future__ import annotations

import ssl

from .core.errors import ConfigError
from .core.settings import TlsSettings


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
    try:
        context.load_verify_locations(settings.ca)
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        files = f"{settings.certificate}, {settings.key}, {settings.ca}"
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        raise ConfigError(f"cannot use the TLS files {files}: {reason}") from error
    return context
