"""STOW-RS against Orthanc's DICOMweb plugin, and against a service that answers as the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.core.errors import Refused, Unavailable
from dicom_node.core.settings import DestinationSettings
from dicom_node.stow import StowClient
from tests.system.orthanc_server import OrthancServer

from .peers import free_port, report, uid


def client(url: str, **more: Any) -> StowClient:
    return StowClient(DestinationSettings(name="web", kind="stow", url=url, **more))


class Service:
    """A DICOMweb service that gives one answer and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = None
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers), content))
                answer = outer.body if isinstance(outer.body, bytes) else json.dumps(outer.body).encode()
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/dicom-web/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture
def service(running: Service) -> Service:
    running.status, running.body, running.requests = 200, {}, []
    return running


def failed(reason: int) -> dict[str, Any]:
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}


def kept(warning: int | None) -> dict[str, Any]:
    item = {} if warning is None else {"00081196": {"vr": "US", "Value": [warning]}}
    return {"00081199": {"vr": "SQ", "Value": [item]}}


def test_orthanc_keeps_the_report_and_a_resend_changes_nothing() -> None:
    content = report()
    with OrthancServer() as orthanc, client(f"{orthanc.url}/dicom-web") as stow:
        receipts = [stow.store(content) for _ in range(2)]
        (identifier,) = orthanc.find(SOPInstanceUID=uid(content))
        assert pydicom.dcmread(BytesIO(orthanc.file(identifier))) == pydicom.dcmread(BytesIO(content))
    assert [(one.status, one.sop_instance_uid) for one in receipts] == [(0, uid(content))] * 2


def test_orthanc_refuses_what_is_not_dicom_for_good() -> None:
    with (
        OrthancServer() as orthanc,
        client(f"{orthanc.url}/dicom-web") as stow,
        pytest.raises(Refused, match="destination web"),
    ):
        stow.store(b"this is not DICOM")


def test_the_request_is_a_store_transaction(service: Service, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    content = report()
    with client(service.url, token_file=token) as stow:
        stow.store(content)
    ((path, headers, body),) = service.requests
    assert path == "/dicom-web/studies"
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert headers["Accept"] == "application/dicom+json"
    assert headers["Authorization"] == "Bearer s3cret"
    boundary = headers["Content-Type"].partition("boundary=")[2].encode()
    head, _, rest = body.partition(b"\r\n\r\n")
    assert head == b"--" + boundary + b"\r\nContent-Type: application/dicom"
    assert rest == content + b"\r\n--" + boundary + b"--\r\n"


@pytest.mark.parametrize("status", [400, 409, 413, 415])
def test_answers_about_the_instance_are_final(service: Service, status: int) -> None:
    service.status = status
    with client(service.url) as stow, pytest.raises(Refused, match=f"HTTP {status}"):
        stow.store(report())


@pytest.mark.parametrize("status", [301, 401, 403, 404, 408, 429, 500, 502, 503, 504])
def test_answers_about_the_moment_or_the_access_are_tried_again(service: Service, status: int) -> None:
    service.status = status
    with client(service.url) as stow, pytest.raises(Unavailable, match=f"HTTP {status}"):
        stow.store(report())


@pytest.mark.parametrize("status", [200, 202, 409])
@pytest.mark.parametrize(
    ("reason", "error"),
    [(0xA700, Unavailable), (0x0110, Unavailable), (0xA900, Refused), (0xC000, Refused), (0x0122, Refused)],
)
def test_the_failure_reason_counts_more_than_the_http_status(
    service: Service, status: int, reason: int, error: type[Exception]
) -> None:
    service.status, service.body = status, failed(reason)
    with client(service.url) as stow, pytest.raises(error, match=f"0x{reason:04X}"):
        stow.store(report())


def test_a_failure_without_a_reason_is_tried_again(service: Service) -> None:
    service.status, service.body = 409, {"00081198": {"vr": "SQ", "Value": [{}]}}
    with client(service.url) as stow, pytest.raises(Unavailable):
        stow.store(report())


@pytest.mark.parametrize(("warning", "meant"), [(None, ""), (0xB000, "data elements were coerced")])
def test_a_warning_is_told(service: Service, warning: int | None, meant: str) -> None:
    service.body = kept(warning)
    with client(service.url) as stow:
        receipt = stow.store(report())
    assert (receipt.status, receipt.warning) == (warning or 0, meant)


@pytest.mark.parametrize("body", [b"", b"not json", [], [1], {"00081198": 3}, {"00081199": {"Value": "x"}}])
def test_an_odd_body_after_success_is_success(service: Service, body: Any) -> None:
    service.body = body
    with client(service.url) as stow:
        assert stow.store(report()).status == 0


def test_a_service_that_is_not_there_may_come_back() -> None:
    with client(f"http://127.0.0.1:{free_port()}/dicom-web") as stow, pytest.raises(Unavailable) as caught:
        stow.store(report())
    assert caught.value.code == "unreachable"


def test_a_token_that_cannot_be_read_is_told_without_its_value(service: Service, tmp_path: Path) -> None:
    with client(service.url, token_file=tmp_path / "absent") as stow, pytest.raises(Unavailable, match="token file"):
        stow.store(report())
