"""The record of a run survives its writer and refuses what the writer did not write."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from dicom_node.core.errors import ConfigError, IntegrityError
from fl_agent.runreport import record
from fl_agent.runreport.record import FILE, End

from .runs import a_round, a_run


def written(folder: Path) -> Path:
    record.append(folder, a_run())
    record.append(folder, a_round(1))
    record.append(folder, a_round(2))
    return folder / FILE


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    written(tmp_path)
    assert record.read(tmp_path) == dataclasses.replace(a_run(), rounds=(a_round(1), a_round(2)))
    record.append(tmp_path, End("published", candidate="2.0"))
    assert record.read(tmp_path).end == End("published", candidate="2.0")


def test_a_last_line_cut_anywhere_is_left_out_named_and_then_removed(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    second = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(second + 1, len(whole)):
        path.write_bytes(whole[:cut])
        found = record.read(tmp_path)
        assert (found.rounds, found.torn) == ((a_round(1),), True)
    record.append(tmp_path, a_round(2))
    assert path.read_bytes() == whole
    assert not record.read(tmp_path).torn


def test_a_round_that_a_resumed_coordinator_wrote_twice_counts_once(tmp_path: Path) -> None:
    written(tmp_path)
    again = dataclasses.replace(a_round(2), survivors=2)
    record.append(tmp_path, again)
    assert record.read(tmp_path).rounds == (a_round(1), again)


def test_a_run_that_goes_on_after_it_was_stopped_has_not_ended(tmp_path: Path) -> None:
    written(tmp_path)
    record.append(tmp_path, End("stopped", code="courier"))
    record.append(tmp_path, a_round(3))
    assert record.read(tmp_path).end is None


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"7", b"{}", b'{"kind":"round"}', b'{"kind":"other"}', b'{"kind":"end","outcome":"lost"}', b"\xff"],
)
def test_a_damaged_line_in_the_middle_is_refused_and_named(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path)
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    with pytest.raises(IntegrityError, match="line 2") as refused:
        record.read(tmp_path)
    assert refused.value.code == "run-record"


def test_a_record_of_two_runs_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    record.append(tmp_path, a_run())
    with pytest.raises(IntegrityError, match="once"):
        record.read(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no record"):
        record.read(tmp_path)
    (tmp_path / FILE).write_bytes(b'{"kind":"ru')
    with pytest.raises(ConfigError, match="has not begun"):
        record.read(tmp_path)


def test_a_coordinators_folder_stands_for_its_newest_run(tmp_path: Path) -> None:
    for number, run in enumerate(("first", "second")):
        (tmp_path / record.RUNS / run).mkdir(parents=True)
        record.append(tmp_path / record.RUNS / run, dataclasses.replace(a_run(), model=run))
        os.utime(tmp_path / record.RUNS / run / FILE, (number, number))
    assert record.read(tmp_path).model == "second"
    assert record.read(tmp_path / record.RUNS / "first").model == "first"


def test_a_number_that_is_none_is_not_recorded(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.append(tmp_path, dataclasses.replace(a_round(3), loss=float("nan")))
    assert path.read_bytes() == before
