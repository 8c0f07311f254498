"""Deterministic DICOM UIDs under the UUID-derived root ``2.25`` (PS3.5 Annex B.2)."""

from __future__ import annotations

import hashlib
import uuid


def derive(*parts: str) -> str:
    """Derive the UID that belongs to `parts`, the same on every call and host.

    A retried job thereby writes the same SOP Instance UID, so a destination sees a resend and not a second report.

    Parameters
    ----------
    *parts : str
        What makes the object unique, in a fixed order. Parts are length-prefixed, so ``("ab", "c")`` and
        ``("a", "bc")`` differ.

    Returns
    -------
    str
        ``2.25.<integer>``, at most 44 characters.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "big"))
        digest.update(encoded)
    # Version 8 is RFC 9562's "vendor specific" UUID: 122 bits of the hash survive, and the value is a valid UUID.
    raw = bytearray(digest.digest()[:16])
    raw[6] = (raw[6] & 0x0F) | 0x80
    raw[8] = (raw[8] & 0x3F) | 0x80
    return f"2.25.{uuid.UUID(bytes=bytes(raw)).int}"
