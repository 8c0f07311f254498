"""How a service holds its memory between queries (`mallopt(3)` and `malloc_trim(3)` of glibc; elsewhere, nothing).

A query allocates the same arrays as the one before. Left alone, the C library gives each back to the system as soon as
it is freed, and the next query pays for every page anew: a quarter of the time of a small network.
"""

from __future__ import annotations

import ctypes
from typing import Any

#: From malloc.h, with the values that services use: what is at most so long comes from the heap (the largest value that
#: is allowed), and of the heap so much may lie free at its end, bytes.
M_TRIM_THRESHOLD, KEPT = -1, 128 << 20
M_MMAP_THRESHOLD, LARGEST_IN_HEAP = -3, 32 << 20


def keep() -> None:
    """Keep freed memory for the next query; call it once, at the start of a service."""
    for option, value in ((M_MMAP_THRESHOLD, LARGEST_IN_HEAP), (M_TRIM_THRESHOLD, KEPT)):
        _call("mallopt", option, value)


def release() -> None:
    """Return freed memory to the system, as after loading a large model."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function: Any = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
