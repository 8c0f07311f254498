"""STOW-RS client: Store Transaction over HTTP (PS3.18 section 10.5)."""

from __future__ import annotations

import secrets
import ssl
from io import BytesIO
from types import TracebackType
from typing import Any, Self

import httpx
import pydicom

from .core.errors import Refused, Unavailable
from .core.settings import DestinationSettings
from .storage_status import SUCCESS, Receipt, judge
from .tls import client_context

TIMEOUT_S = 30.0
PROCESSING_FAILURE = 0x0110
#: Answers that speak about the instance: sending it again changes nothing. All others speak about the moment or about
#: the access (401, 403: a token that ran out; 404: an address to be corrected), and are tried again.
FINAL = {400: "bad request", 409: "conflict", 413: "too large", 415: "media type not supported"}
_FAILED_SOP_SEQUENCE, _FAILURE_REASON = "00081198", "00081197"
_REFERENCED_SOP_SEQUENCE, _WARNING_REASON = "00081199", "00081196"


class StowClient:
    """A connection to one DICOMweb service.

    Parameters
    ----------
    destination : DestinationSettings
        Of kind ``stow``.
    """

    def __init__(self, destination: DestinationSettings) -> None:
        assert destination.url is not None
        self._destination = destination
        verify: ssl.SSLContext | bool = client_context(destination.tls) if destination.tls else True
        self._http = httpx.Client(verify=verify, timeout=TIMEOUT_S, trust_env=False)

    def store(self, report: bytes) -> Receipt:
        """Store one instance.

        Parameters
        ----------
        report : bytes
            A DICOM file.

        Raises
        ------
        Refused
            The service will never take it: HTTP 400, 409, 413, 415, or a Failure Reason that says so.
        Unavailable
            It may take it later: no connection, any other HTTP error, or a Failure Reason that says so.
        """
        boundary = secrets.token_hex(16)
        body = b"".join(
            (
                f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
                report,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
            **self._authorization(),
        }
        try:
            answer = self._http.post(f"{str(self._destination.url).rstrip('/')}/studies", content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"destination {self._destination.name} cannot be reached: {type(error).__name__}", code="unreachable"
            ) from error
        return self._receipt(report, answer)

    def reach(self) -> None:
        """Ask whether the service is there and lets us in (QIDO-RS, PS3.18 Section 10.6); the answer is not read.

        Raises
        ------
        Unavailable
            It is away, fails, or does not know us.
        """
        where = f"destination {self._destination.name}"
        url = f"{str(self._destination.url).rstrip('/')}/studies"
        headers = {"Accept": "application/dicom+json", **self._authorization()}
        try:
            with self._http.stream("GET", url, params={"limit": 1}, headers=headers) as answer:
                status = answer.status_code
        except httpx.HTTPError as error:
            raise Unavailable(f"{where} cannot be reached: {type(error).__name__}", code="unreachable") from error
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise Unavailable(f"{where} does not let us in: check its token_file and tls", code="access-denied")
        if status == httpx.codes.NOT_FOUND or httpx.codes.is_server_error(status):
            raise Unavailable(f"{where} answers HTTP {status}: check its url", code="destination-failed")

    def _authorization(self) -> dict[str, str]:
        if self._destination.token_file is None:
            return {}
        try:
            token = self._destination.token_file.read_text().strip()
        except OSError as error:
            raise Unavailable(
                f"the token file of destination {self._destination.name} cannot be read: {error.strerror}",
                code="token-unreadable",
            ) from error
        return {"Authorization": f"Bearer {token}"}

    def _receipt(self, report: bytes, answer: httpx.Response) -> Receipt:
        name = self._destination.name
        module = _json(answer)
        # A Failure Reason is closer to the truth than the HTTP status: 409 also covers "out of resources".
        failure = _first_item(module, _FAILED_SOP_SEQUENCE)
        if failure is not None:
            status = _number(failure, _FAILURE_REASON) or PROCESSING_FAILURE
            return self._kept(report, status, judge(status, name))  # "duplicate" is the failure that passes
        if answer.status_code in FINAL:
            reason = FINAL[answer.status_code]
            raise Refused(
                f"destination {name} refused the report for good: HTTP {answer.status_code} ({reason})",
                code="destination-refused",
            )
        if not answer.is_success:
            raise Unavailable(f"destination {name} answers HTTP {answer.status_code}", code="destination-failed")
        status = _number(_first_item(module, _REFERENCED_SOP_SEQUENCE) or {}, _WARNING_REASON) or SUCCESS
        return self._kept(report, status, judge(status, name))

    def _kept(self, report: bytes, status: int, warning: str) -> Receipt:
        header = pydicom.dcmread(BytesIO(report), stop_before_pixels=True)
        return Receipt(status, warning, str(header.SOPClassUID), str(header.SOPInstanceUID))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()


def _json(answer: httpx.Response) -> dict[str, Any]:
    """Read the Store Instances Response Module (PS3.18 Annex I); a service that answers otherwise leaves it empty."""
    if "json" not in answer.headers.get("Content-Type", ""):
        return {}
    try:
        module = answer.json()
    except ValueError:
        return {}
    if isinstance(module, list):
        module = module[0] if module else {}
    return module if isinstance(module, dict) else {}


def _first(item: dict[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _first_item(module: dict[str, Any], tag: str) -> dict[str, Any] | None:
    item = _first(module, tag)
    return item if isinstance(item, dict) else None


def _number(item: dict[str, Any], tag: str) -> int | None:
    value = _first(item, tag)
    return value if isinstance(value, int) else None
