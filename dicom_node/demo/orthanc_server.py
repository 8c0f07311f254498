"""A throw-away Orthanc on free loopback ports with temporary storage, for the demonstration and the tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from ..core.errors import Unavailable
from ..launch import free_port

PLUGINS = Path("/usr/share/orthanc/plugins")
START_SECONDS = 30.0


def find_orthanc() -> str | None:
    """Return the path of the Orthanc program, or None where it is not installed."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


class OrthancServer:
    """An Orthanc process with DICOMweb, used as ``with OrthancServer() as orthanc:``.

    Parameters
    ----------
    aet : str
        Its Application Entity Title, at most 16 characters.
    modalities : mapping of str to (aet, host, port)
        Peers it may send to, by their symbolic name (``DicomModalities``).
    lua_scripts : sequence of Path
        Lua files to load.
    config : mapping
        Further Orthanc settings; they win over the ones chosen here.
    environment : mapping of str to str
        Further environment variables, for Lua scripts that read them.

    Attributes
    ----------
    url : str
        REST root, without a trailing slash; DICOMweb is at ``url + "/dicom-web"``.
    http_port, dicom_port : int
        Chosen anew by each `start`, unless `config` fixes ``HttpPort`` or ``DicomPort``.
    """

    def __init__(
        self,
        *,
        aet: str = "ORTHANC",
        modalities: Mapping[str, tuple[str, str, int]] | None = None,
        lua_scripts: Sequence[Path] = (),
        config: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.aet = aet
        self.http_port = 0
        self.dicom_port = 0
        self._modalities = dict(modalities or {})
        self._lua_scripts = list(lua_scripts)
        self._config = dict(config or {})
        self._environment = dict(environment or {})
        self._folder = Path(tempfile.mkdtemp(prefix="orthanc-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """REST root, without a trailing slash."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        """Return the process id, for tests that stop or pause the server themselves."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Return what Orthanc has written to stderr so far."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start, and return once the REST interface answers; storage survives `stop` and a second `start`."""
        executable = find_orthanc()
        if executable is None:
            raise Unavailable("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
        for _ in range(3):  # another process may take a free port between our look and Orthanc's bind
            self._write_configuration()
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [executable, str(self._folder / "orthanc.json")],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self._environment},
                )
            if self._answers():
                return self
            self.stop(signal.SIGKILL)
        raise Unavailable(f"Orthanc did not start:\n{self.log[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process; SIGKILL for tests of crashes."""
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the process and delete its storage."""
        self.stop(signal.SIGKILL)  # nothing is to be kept, and an orderly end takes seconds
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, path: str, **query: str) -> Any:
        """Return the answer of ``GET path`` as parsed JSON."""
        return httpx.get(self.url + path, params=query, timeout=30).raise_for_status().json()

    def upload(self, instance: bytes) -> str:
        """Store one DICOM file by REST and return Orthanc's identifier of it."""
        answer = httpx.post(f"{self.url}/instances", content=instance, timeout=60).raise_for_status()
        return str(answer.json()["ID"])

    def file(self, identifier: str) -> bytes:
        """Return the stored DICOM file of an Orthanc instance identifier."""
        return httpx.get(f"{self.url}/instances/{identifier}/file", timeout=60).raise_for_status().content

    def find(self, **query: str) -> list[str]:
        """Return the identifiers of the instances that match, e.g. ``find(Modality="SR")``."""
        answer = httpx.post(f"{self.url}/tools/find", json={"Level": "Instance", "Query": query}, timeout=30)
        return list(answer.raise_for_status().json())

    def clear(self) -> None:
        """Delete every patient, for tests that share one server."""
        for patient in self.get("/patients"):
            httpx.delete(f"{self.url}/patients/{patient}", timeout=30).raise_for_status()

    def _write_configuration(self) -> None:
        self.http_port = int(self._config.get("HttpPort", 0)) or free_port()
        self.dicom_port = int(self._config.get("DicomPort", 0)) or free_port()
        settings = {
            "Name": "Test",
            "StorageDirectory": str(self._folder / "storage"),
            "IndexDirectory": str(self._folder / "storage"),
            "TemporaryDirectory": str(self._folder),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.aet,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StableAge": 2,
            "DefaultEncoding": "Utf8",
            "DicomAssociationCloseDelay": 1,
            "DicomModalities": {name: list(peer) for name, peer in self._modalities.items()},
            "LuaScripts": [str(path.resolve()) for path in self._lua_scripts],
            "Plugins": [str(path) for path in sorted(PLUGINS.glob("libOrthancDicomWeb.so"))],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        settings.update({key: value for key, value in self._config.items() if key not in {"HttpPort", "DicomPort"}})
        (self._folder / "orthanc.json").write_text(json.dumps(settings))

    def _answers(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                # The DICOM port is compared because a lost race for the port would let another Orthanc answer.
                system = httpx.get(f"{self.url}/system", timeout=2).raise_for_status().json()
                if system["DicomPort"] == self.dicom_port and self._process.poll() is None:
                    return True
            except httpx.HTTPError:
                time.sleep(0.05)
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
