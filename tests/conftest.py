"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from dicom_node.core.database import Database

# Several processes share two cores here, which torch's threads, waiting actively for each other, would waste.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent

DATA = Path(os.environ.get("PNEUMONIA_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Undo what a command that ran inside a test did to logging: the stream it wrote to is closed by the next test."""
    configuration, handlers, level = structlog.get_config(), logging.root.handlers[:], logging.root.level
    yield
    structlog.configure(**configuration)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def pneumonia_data() -> Path:
    """The folder of real X-rays, outside the repository; see `PNEUMONIA_DATA` in the README."""
    if not (DATA / "kermany224" / "manifest.csv").is_file():
        pytest.skip(f"PNEUMONIA_DATA does not name a folder with kermany224/manifest.csv: {DATA}")
    return DATA


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL prefix of a PostgreSQL cluster that listens on a Unix socket alone."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="vrpg"))  # a socket's path may have 107 characters: not pytest's folder
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    control = [*as_user, str(binaries[-1] / "pg_ctl"), "-D", str(data), "-w"]
    try:
        subprocess.run(
            [*control, "initdb", "-o", "-A trust -U veilray --no-sync"], check=True, capture_output=True, cwd=folder
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        started = [*control, "-l", str(folder / "log"), "-o", options, "start"]
        subprocess.run(started, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        yield f"postgresql+psycopg://veilray@/{{name}}?host={folder}"
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A fresh migrated database of each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'records.sqlite3'}"
    else:
        template = request.getfixturevalue("postgresql")
        name = f"t{uuid.uuid4().hex}"
        admin = sa.create_engine(template.format(name="postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        admin.dispose()
        url = template.format(name=name)
    opened = Database(url)
    opened.migrate()
    yield opened
    opened.close()
