"""How values look on a page: times, durations, sizes, certainty, and the names the DICOM standard gives to codes."""

from __future__ import annotations

import datetime
import math

from pydicom import config
from pydicom.uid import UID

from dicom_node.core.audit import Event

#: C-STORE statuses that we answer with (PS3.4 Table B.2-1, PS3.7 Annex C).
STATUSES = {
    0x0117: "Invalid SOP Instance",
    0x0122: "SOP Class Not Supported",
    0x0124: "Not Authorized",
    0xA700: "Out of Resources",
    0xA900: "Data Set Does Not Match SOP Class",
    0xC000: "Cannot Understand",
}
EVENTS = {event.code: event.value[1] for event in Event}
OUTCOMES = {0: "Success", 4: "Minor failure", 8: "Serious failure", 12: "Major failure"}
ACTIONS = {"C": "Create", "R": "Read", "U": "Update", "D": "Delete", "E": "Execute"}
ENGINES = {"dealt-2pc": "Encrypted (dealt 2PC)", "plaintext": "In the clear"}


def moment(seconds: float) -> str:
    """Show a time of this host's time zone, e.g. ``2026-03-04 08:15:02``."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def machine_moment(seconds: float) -> str:
    """Give the same time for the ``datetime`` attribute (ISO 8601 with offset)."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def duration(seconds: float | None) -> str:
    """Show a span with two meaningful digits or so; an en dash when there is none."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size in (("s", 120), ("min", 7200), ("h", 172800)):
        if seconds < size:
            return f"{seconds / {'s': 1, 'min': 60, 'h': 3600}[unit]:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def size(count: float) -> str:
    """Show a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def percent(share: float) -> str:
    """Show a probability in whole percent; never 0 or 100, which would claim more than any model knows."""
    rounded = math.floor(100 * share + 0.5)
    if rounded >= 100:
        return "> 99 %"
    return "< 1 %" if rounded <= 0 else f"{rounded} %"


def uid_name(uid: str) -> str:
    """Name a SOP class or transfer syntax as PS3.6 Annex A does; an unknown one is shown as it is."""
    return str(UID(uid, config.IGNORE).name)


def status_name(status: int) -> str:
    """Show a DIMSE status with its meaning."""
    return f"0x{status:04X} {STATUSES.get(status, '')}".strip()


FILTERS = {
    "moment": moment,
    "machine_moment": machine_moment,
    "duration": duration,
    "size": size,
    "percent": percent,
    "uid_name": uid_name,
    "status_name": status_name,
}
