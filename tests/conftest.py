"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

DATA = Path(os.environ.get("PNEUMONIA_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def pneumonia_data() -> Path:
    """The folder of real X-rays, outside the repository; see `PNEUMONIA_DATA` in the README."""
    if not (DATA / "kermany224" / "manifest.csv").is_file():
        pytest.skip(f"PNEUMONIA_DATA does not name a folder with kermany224/manifest.csv: {DATA}")
    return DATA
