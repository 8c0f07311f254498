"""Gives memory back to the system: a service that loads a large model should not hold the remains for weeks."""

from __future__ import annotations

import ctypes


def release() -> None:
    """Return freed memory to the system (`malloc_trim(3)` of glibc); elsewhere, do nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
