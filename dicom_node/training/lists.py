"""Strict reading of lists (CSV, RFC 4180, UTF-8): every fault with its line number, and never with its value."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicom_node.core.errors import ConfigError, Refused

LARGEST_BYTES = 64 * 1024 * 1024
LONGEST_FIELD = 200


@dataclass(frozen=True)
class Row:
    """One line of a list: its number in the file and its values by column, without surrounding blanks."""

    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one line; holds no value of the list."""

    line: int
    sentence: str


def told(faults: Sequence[Fault]) -> str:
    """Name the first faults of a list by their lines, and how many more there are."""
    first = "; ".join(f"line {fault.line}: {fault.sentence}" for fault in faults[:10])
    return first + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")


class FaultyList(Refused):
    """A list was refused whole.

    Parameters
    ----------
    faults : iterable of Fault
        Everything that is wrong with it.
    """

    code = "faulty-list"

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: fault.line))
        super().__init__(f"nothing was imported, because the list has faults: {told(self.faults)}")


def read(path: Path, columns: Sequence[str], required: Sequence[str]) -> list[Row]:
    """Read a list.

    Parameters
    ----------
    path : Path
        UTF-8 with or without byte order mark, separated by commas or semicolons, the first line naming the columns.
    columns : sequence of str
        All columns that may stand in it; upper and lower case count.
    required : sequence of str
        Of these, those that must.

    Raises
    ------
    ConfigError
        The file cannot be read.
    FaultyList
        It is not such a list.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the list {path}: {error.strerror}") from error
    if len(content) > LARGEST_BYTES:
        raise FaultyList([Fault(1, f"the file is larger than {LARGEST_BYTES >> 20} MiB: import it in parts")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FaultyList([Fault(line, "this is not UTF-8: save the list as 'CSV UTF-8'")]) from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in first else ",", strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _judge_header(header, columns, required)
        rows, faults = [], []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            values = [cell.strip() for cell in cells]
            if len(values) != len(header):
                faults.append(Fault(reader.line_num, f"it has {len(values)} fields where the header has {len(header)}"))
            elif any(len(value) > LONGEST_FIELD or not value.isprintable() for value in values):
                faults.append(Fault(reader.line_num, "a field is too long or holds control characters"))
            else:
                rows.append(Row(reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error:
        raise FaultyList([Fault(reader.line_num, "its quotes do not match")]) from None
    if faults:
        raise FaultyList(faults)
    return rows


def _judge_header(header: Sequence[str], columns: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in header]
    # A misspelt column that was left out silently could turn an opt-out into nothing.
    unknown = [number for number, name in enumerate(header, start=1) if name not in columns]
    if missing:
        raise FaultyList([Fault(1, f"the header lacks {', '.join(missing)}")])
    if unknown:
        numbers = ", ".join(str(number) for number in unknown)
        raise FaultyList([Fault(1, f"column {numbers} of the header is none of {', '.join(columns)}")])
    if len(set(header)) != len(header):
        raise FaultyList([Fault(1, "the header names a column twice")])
