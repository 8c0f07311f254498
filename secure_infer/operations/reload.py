"""Takes up changed allow-lists, limits, certificates and lists of revoked certificates while a service runs.

A bad file changes nothing and is told: what was agreed before stays in force until the file is mended.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from pydantic import Field

from dicom_node.core import logs, settings
from dicom_node.core.credentials import Credentials, Watched
from dicom_node.core.errors import ConfigError
from dicom_node.core.section import Section
from dicom_node.core.settings import TlsSettings
from dicom_node.core.tls import Fingerprint

log = logs.get(__name__)


class Reloadable(Section):
    """Settings of a service of which some may change while it runs: those that `LIVE` names, besides `tls`."""

    LIVE: ClassVar[frozenset[str]] = frozenset({"names"})

    tls: TlsSettings = Field(description="this side's certificate, and the authorities of the others")
    names: dict[Fingerprint, str] = Field(
        default={}, description="names of certificates in figures; the beginning of the fingerprint when absent"
    )


S = TypeVar("S", bound=Reloadable)


class Note(Protocol):
    """Keeps what was reloaded, or why not."""

    def __call__(self, what: str, code: str) -> None:
        """Note that `what` happened; `code` is the error's, or empty."""


class Reloader(Generic[S]):
    """Looks at a service's settings file and at the files of its certificates.

    Parameters
    ----------
    path : Path
        The settings file.
    present : Reloadable
        As it was read at the start.
    credentials : Credentials
        Refreshed here.
    take_up : callable
        Puts new settings in force.
    note : callable
        Told what was taken up, and what could not be.
    """

    def __init__(
        self, path: Path, present: S, credentials: Credentials, take_up: Callable[[S], None], note: Note
    ) -> None:
        self._path = path
        self._present = present
        self._credentials = credentials
        self._take_up = take_up
        self._note = note
        self._watched = Watched([path])

    def run_once(self, *, asked: bool = False) -> bool:
        """Take up what changed since the last look, or everything when `asked`; return whether anything did."""
        changed = False
        if self._watched.changed() or asked:
            changed = self._settings()
        try:
            refreshed = self._credentials.refresh(self._present.tls)
        except ConfigError as error:
            self._failed("certificates-not-reloaded", error)
            return changed
        if refreshed:
            log.info("certificates-reloaded")
            self._note("certificates-reloaded", "")
        return changed or refreshed

    def _settings(self) -> bool:
        try:
            found = settings.read(self._path, type(self._present))
        except ConfigError as error:
            self._failed("settings-not-reloaded", error)
            return False
        waiting = [
            name for name in type(found).model_fields
            if name not in {"tls", *found.LIVE} and getattr(found, name) != getattr(self._present, name)
        ]  # fmt: skip
        if waiting:
            log.warning("restart-needed", message=f"these settings change at the next start: {', '.join(waiting)}")
        self._take_up(found)
        self._present = found
        log.info("settings-reloaded", path=str(self._path))
        self._note("settings-reloaded", "")
        return True

    def _failed(self, what: str, error: ConfigError) -> None:
        log.error(what, **logs.describe(error))
        self._note(what, error.code)
