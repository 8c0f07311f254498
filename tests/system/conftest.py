"""Real servers that system tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.orthanc_server import OrthancServer


@pytest.fixture(scope="session")
def orthanc() -> Iterator[OrthancServer]:
    """One Orthanc with DICOMweb for the session; call `clear` first where what others stored would matter."""
    with OrthancServer() as server:
        yield server
