"""Where the owners of a trial's kits keep what is their own."""

from __future__ import annotations

from pathlib import Path

from ..courier.nvflare.consortium import OWNERS
from ..courier.nvflare.wire import COORDINATOR


def folder(kits: Path, name: str) -> Path:
    """Return an owner's folder: keys, settings, records and log."""
    return kits.absolute() / OWNERS / name


def config(kits: Path, name: str) -> Path:
    """Return an owner's settings file."""
    return folder(kits, name) / ("coordinator.toml" if name == COORDINATOR else "site.toml")
