"""The errors of all three packages, divided by what the reader should do about them.

::

    VeilRayError
    ├── ConfigError        the operator edits site.toml           exit 78
    ├── RejectedInstance   the peer sent what must not be kept    DIMSE 0x0117, 0x0122, 0xA900, 0xC000; HTTP 422
    ├── Refused            policy says no: closed, never retried  DIMSE 0x0124; HTTP 403
    ├── Unavailable        peer, party, dealer or disk is away: retried  DIMSE 0xA700; HTTP 503; exit 75
    ├── ProtocolError      a peer broke the rules: aborted, keys dropped  HTTP 400; exit 76
    └── IntegrityError     audit chain, signature or file hash: fail closed  DIMSE 0xA700; HTTP 500; exit 70

Exit statuses are those of BSD ``sysexits.h``. Messages hold no patient data: they may reach logs, pages and peers.
"""

from __future__ import annotations

from typing import ClassVar


class VeilRayError(Exception):
    """Base of every error that VeilRay raises on purpose.

    Parameters
    ----------
    message : str
        One sentence that says what is wrong and what to do; no patient data.
    code : str, optional
        Stable identifier in kebab case, for dashboards and tests; the class's own code by default.
    """

    code: str = "error"
    retryable: ClassVar[bool] = False
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(VeilRayError):
    """A setting is missing or wrong; the message names it."""

    code = "config"
    exit_status = 78


class RejectedInstance(VeilRayError):
    """A peer sent an object that must not be kept.

    Parameters
    ----------
    status : int
        The DIMSE C-STORE status to answer with (PS3.4 Table B.2-1, PS3.7 Annex C).
    """

    code = "rejected-instance"
    http_status = 422

    def __init__(self, message: str, *, status: int, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.status = status


class Refused(VeilRayError):
    """Policy (selection, consent, budget, licence of the model) says no; trying again changes nothing."""

    code = "refused"
    exit_status = 77
    http_status = 403


class Unavailable(VeilRayError):
    """A peer, a service or the disk is away; the same work may succeed later."""

    code = "unavailable"
    retryable = True
    exit_status = 75
    http_status = 503


class ProtocolError(VeilRayError):
    """A peer of a cryptographic protocol broke its rules; the run is aborted and its keys are dropped."""

    code = "protocol"
    exit_status = 76
    http_status = 400


class IntegrityError(VeilRayError):
    """Stored state contradicts its own hash or signature; work stops until a person looks."""

    code = "integrity"
    exit_status = 70
