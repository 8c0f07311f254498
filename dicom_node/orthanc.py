"""Orthanc over its REST API: the change feed as a second way in, and upload as a way out.

Of the feed, ``NewInstance`` is read and not ``StableStudy``: Orthanc writes the former in the transaction that stores
the image, while a study that was about to become stable when Orthanc stopped never does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import BytesIO
from types import TracebackType
from typing import Any, Self

import httpx
import pydicom
import pyorthanc
import sqlalchemy as sa
from pydicom.uid import SecondaryCaptureImageStorage
from sqlalchemy.dialects import postgresql, sqlite

from .core import logs
from .core.database import Database, fact, job
from .core.errors import Refused, RejectedInstance, Unavailable
from .core.settings import OrthancSettings, Settings
from .storage_status import SUCCESS, Receipt
from .store import Store

log = logs.get(__name__)
TIMEOUT_S = 30.0
PAGE = 100
FACT = "orthanc-change"
SOURCE = "orthanc"
#: HTTP statuses by which Orthanc speaks about the file; all others speak about the moment or about the access.
FINAL = frozenset({400, 409, 413, 415})


class OrthancClient:
    """A connection to one Orthanc.

    Raises
    ------
    Unavailable
        Of every method: Orthanc is away, or answers with an error that may pass.
    """

    def __init__(self, settings: OrthancSettings) -> None:
        self._http = pyorthanc.Orthanc(
            settings.url.rstrip("/"),
            settings.username,
            _password(settings),
            return_raw_response=True,  # the library's own exception hides the HTTP status in a sentence
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    def store(self, report: bytes) -> Receipt:
        """Upload a DICOM file; one that Orthanc already holds counts as delivered.

        Raises
        ------
        Refused
            Orthanc calls the file invalid, or a filter of its own keeps it out.
        """
        answer = self._answer(self._http.post_instances, report)
        if answer.status_code in FINAL:
            raise Refused(f"Orthanc refused the report for good: HTTP {answer.status_code}", code="destination-refused")
        status = _checked(answer).json().get("Status")
        if status not in {"Success", "AlreadyStored"}:
            raise Refused(f"Orthanc keeps the report out ({status}): look at its filters", code="destination-refused")
        header = pydicom.dcmread(BytesIO(report), stop_before_pixels=True)
        warning = "the destination already held it" if status == "AlreadyStored" else ""
        return Receipt(SUCCESS, warning, str(header.SOPClassUID), str(header.SOPInstanceUID))

    def version(self) -> str:
        """Return Orthanc's version: the question of whether it is there."""
        return str(_checked(self._answer(self._http.get_system)).json()["Version"])

    def changes(self, since: int, limit: int) -> dict[str, Any]:
        """Return the changes after number `since`, oldest first, at most `limit`."""
        answer = self._answer(self._http.get_changes, {"since": since, "limit": limit})
        page: dict[str, Any] = _checked(answer).json()
        return page

    def last_change(self) -> dict[str, Any]:
        """Return the page that holds the newest change alone."""
        page: dict[str, Any] = _checked(self._answer(self._http.get_changes, {"last": ""})).json()
        return page

    def sop_class(self, identifier: str) -> str | None:
        """Return the SOP Class UID of an instance; None when it was deleted."""
        found = self._text(self._http.get_instances_id_metadata_name, identifier, "SopClassUid")
        # Old Orthancs kept no such metadata: then it is read from the file.
        return found or self._text(self._http.get_instances_id_content_path, identifier, "0008-0016")

    def sop_instance(self, identifier: str) -> str | None:
        """Return the SOP Instance UID of an instance; None when it was deleted."""
        return self._text(self._http.get_instances_id_content_path, identifier, "0008-0018")

    def file(self, identifier: str) -> bytes | None:
        """Return the DICOM file of an instance; None when it was deleted."""
        answer = self._answer(self._http.get_instances_id_file, identifier)
        return None if answer.status_code == httpx.codes.NOT_FOUND else _checked(answer).content

    def reports(self, study_instance_uid: str) -> list[str]:
        """Return Orthanc's names of the Structured Reports of a study."""
        query = {"StudyInstanceUID": study_instance_uid, "Modality": "SR"}
        answer = self._answer(self._http.post_tools_find, {"Level": "Instance", "Query": query})
        found: list[str] = _checked(answer).json()
        return found

    def _text(self, call: Any, *arguments: str) -> str | None:
        answer = self._answer(call, *arguments)
        return None if answer.status_code == httpx.codes.NOT_FOUND else _checked(answer).text.strip(" \0\r\n")

    def _answer(self, call: Any, *arguments: Any) -> httpx.Response:
        try:
            answer: httpx.Response = call(*arguments)
        except httpx.HTTPError as error:
            raise Unavailable(f"Orthanc cannot be reached: {type(error).__name__}", code="unreachable") from error
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _password(settings: OrthancSettings) -> str | None:
    if settings.password_file is None:
        return None
    try:
        return settings.password_file.read_text().strip()
    except OSError as error:
        raise Unavailable(
            f"the file orthanc.password_file cannot be read: {error.strerror}", code="password-unreadable"
        ) from error


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise Unavailable(
            "Orthanc does not let us in: check orthanc.username and orthanc.password_file", code="access-denied"
        )
    if not answer.is_success:
        raise Unavailable(f"Orthanc answers HTTP {answer.status_code}", code="destination-failed")
    return answer


@dataclass(frozen=True)
class Position:
    """How far the feed was read: a change's number, and what lets it be recognised.

    Orthanc's database has no name. If the change under our number is another one, the database was replaced.
    """

    number: int
    identifier: str = ""
    date: str = ""

    @classmethod
    def of(cls, change: dict[str, Any]) -> Position:
        """Return the position after reading `change`."""
        return cls(int(change["Seq"]), str(change["ID"]), str(change["Date"]))


class ChangeFeed:
    """Takes every new radiograph of an Orthanc, exactly once in effect.

    Parameters
    ----------
    settings : Settings
        With the section ``[orthanc]``.
    database, store
        The site's records and instances.

    Notes
    -----
    The position is written after an instance is durable. A crash between the two takes the instance again, which the
    store recognises by UID and hash. On first contact the feed starts at its end: what an archive gathered over the
    years is not classified unasked (`orthanc.change_feed_from`).
    """

    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        assert settings.orthanc is not None
        self._settings = settings.orthanc
        self._database = database
        self._store = store
        self._client: OrthancClient | None = None
        self._look_at = 0.0
        self._name = f"{FACT}:{settings.orthanc.url.rstrip('/')}"[:120]

    def run_once(self, now: float) -> bool:
        """Read one page of changes, not more often than every ``orthanc.poll_s``.

        Returns
        -------
        bool
            Whether there may be more to read at once.

        Raises
        ------
        Unavailable
            Orthanc is away, or the store cannot take instances now; nothing is lost.
        """
        if now < self._look_at:
            return False
        self._look_at = now + self._settings.poll_s
        if self._client is None:
            self._client = OrthancClient(self._settings)
        position = self._position()
        if position is None:
            self._begin(self._client)
            self._look_at = now
            return True
        # One back, so that the page begins with the change read last and a replaced database shows itself.
        page = self._client.changes(max(0, position.number - 1), PAGE)
        if self._replaced(page, position):
            log.warning("orthanc-database-replaced", url=self._settings.url)
            self._remember(Position(0))
            self._look_at = now
            return True
        fresh = [change for change in page["Changes"] if int(change["Seq"]) > position.number]
        for change in fresh:
            if change["ChangeType"] == "NewInstance" and self._take(self._client, str(change["ID"])):
                self._remember(Position.of(change))
        if fresh:
            self._remember(Position.of(fresh[-1]))
        if not page["Done"]:
            self._look_at = now
        return not page["Done"]

    def close(self) -> None:
        """Close the connection to Orthanc."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _begin(self, client: OrthancClient) -> None:
        newest = client.last_change()
        if self._settings.change_feed_from == "beginning" or not newest["Changes"]:
            self._remember(Position(0))
        else:
            self._remember(Position.of(newest["Changes"][-1]))
        log.info("change-feed-started", url=self._settings.url, count=int(newest["Last"]))

    @staticmethod
    def _replaced(page: dict[str, Any], position: Position) -> bool:
        """Tell whether Orthanc's database is another one than at the last look.

        A change vanishes with the image it is about, so an absent change proves nothing; another change under the
        same number, or fewer changes than were read, does.
        """
        same = [change for change in page["Changes"] if int(change["Seq"]) == position.number]
        if same:
            return Position.of(same[0]) != position
        return not page["Changes"] and int(page["Last"]) < position.number

    def _take(self, client: OrthancClient, identifier: str) -> bool:
        sop_class = client.sop_class(identifier)
        if sop_class is None or not self._store.takes(sop_class):  # no reports: neither ours nor others'
            return False
        if sop_class == SecondaryCaptureImageStorage and self._is_ours(client.sop_instance(identifier)):
            return False
        content = client.file(identifier)
        if content is None:  # deleted since
            return False
        try:
            self._store.add_file(content, SOURCE)
        except RejectedInstance as error:
            self._store.reject(error, sop_class, SOURCE)
        return True

    def _is_ours(self, sop_instance_uid: str | None) -> bool:
        """Tell whether we delivered this instance: the keys of deliveries begin with ``deliver:<UID>:``."""
        if sop_instance_uid is None:
            return False
        key = f"deliver:{sop_instance_uid}:"
        known = sa.select(job.c.id).where(job.c.key >= key, job.c.key < key[:-1] + ";").limit(1)
        with self._database.read() as connection:
            return connection.execute(known).first() is not None

    def _position(self) -> Position | None:
        with self._database.read() as connection:
            value = connection.execute(sa.select(fact.c.value).where(fact.c.name == self._name)).scalar_one_or_none()
        return None if value is None else Position(**json.loads(value))

    def _remember(self, position: Position) -> None:
        value = json.dumps(asdict(position))
        with self._database.write() as connection:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            insert = dialect.insert(fact).values(name=self._name, value=value)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
