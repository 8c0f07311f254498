"""The pages over a real database, asked in process as an ASGI application."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dicom_node.core.database import Database
from dicom_node.core.settings import Settings
from dicom_node.web import create_app
from tests.dicom_node.web import records


class Site:
    """One site with its pages, as a visitor on the same machine meets them."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self.now = records.NOW
        self.app = create_app(settings, database, lambda: self.now)
        self.cookies: dict[str, str] = {}

    def ask(self, path: str, method: str = "GET", **options: Any) -> httpx.Response:
        """Send one request; cookies are kept from one to the next."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
                client.cookies.update(self.cookies)
                return await client.request(method, path, **options)

        answer = asyncio.run(send())
        self.cookies |= dict(answer.cookies)
        return answer


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The records of an empty and of a busy site, made once and copied for each test."""
    made = {}
    for name in ("empty", "busy"):
        made[name] = tmp_path_factory.mktemp(name) / "veilray.sqlite3"
        database = Database(f"sqlite:///{made[name]}")
        database.migrate()
        if name == "busy":
            records.a_day(database)
        database.close()
    return made


def opened(copy_of: Path, folder: Path) -> Iterator[Site]:
    shutil.copy(copy_of, folder / copy_of.name)
    settings = records.site(folder)
    database = Database(settings.database_url)
    yield Site(settings, database)
    database.close()


@pytest.fixture
def site(prepared: dict[str, Path], tmp_path: Path) -> Iterator[Site]:
    """A site that has received nothing yet."""
    yield from opened(prepared["empty"], tmp_path)


@pytest.fixture
def busy(prepared: dict[str, Path], tmp_path: Path) -> Iterator[Site]:
    """A site after a day's work; `records.a_day` says what happened."""
    yield from opened(prepared["busy"], tmp_path)
