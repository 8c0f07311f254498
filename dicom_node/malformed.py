"""The one rule for datasets that break PS3.5: whatever pydicom or a codec makes of them ends as a refusal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from .core.errors import Refused, Unavailable, VeilRayError


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn every unforeseen exception of the block into a refusal, and silence warnings, which quote values.

    TypeError (an empty LUT), RecursionError (deep nesting), ValueError (text in a number): the list is open, so it is
    not kept. The cause is dropped from the refusal, because its text may hold what the dataset held. The filter of
    warnings is process-wide in CPython: enter from one thread at a time.

    Parameters
    ----------
    what : str
        The subject of the message, e.g. ``"the image"``.

    Raises
    ------
    Refused
        Code ``malformed``; the message names the kind of the exception.
    Unavailable
        The node is short of memory, which is no fault of the dataset.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except VeilRayError:
        raise
    except MemoryError:
        raise Unavailable(f"not enough memory to read {what}", code="memory") from None
    except Exception as error:
        raise Refused(
            f"{what} is malformed and cannot be read ({type(error).__name__}): the sender must repair it",
            code="malformed",
        ) from None
