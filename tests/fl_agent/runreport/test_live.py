"""Progress in the terminal: whoever looks sees each round once, the end, and nothing that a name smuggles in."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fl_agent.__main__ import main
from fl_agent.runreport import record
from fl_agent.runreport.live import BLOCKS, WIDTH, Follower, Progress, curve, follow, view
from fl_agent.runreport.record import End, RunRecord

from .runs import a_round, a_run


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=140, force_terminal=terminal, color_system=None)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def seen(run: RunRecord) -> str:
    shown = console()
    shown.print(view(run))
    return text(shown)


def test_a_followed_run_is_told_round_by_round_until_it_ends(tmp_path: Path) -> None:
    steps = iter([a_round(1), a_round(2), End("published", candidate="2.0")])
    record.append(tmp_path, a_run(2))
    shown = console()
    follow(tmp_path, shown, sleep=lambda _: record.append(tmp_path, next(steps)))
    lines = text(shown).splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "round 1 of 2", "round 2 of 2", "finished; published as candidate 2.0",
    ]  # fmt: skip
    assert "loss 1.026, AUC, pneumonia 0.695, ε 0.285 distributed, ε 1.233 alone" in lines[0]


def test_a_terminal_shows_one_view_that_is_redrawn(tmp_path: Path) -> None:
    record.append(tmp_path, a_run(2))
    shown = console(terminal=True)
    with Progress(shown) as progress:
        follower = Follower(tmp_path, progress)
        assert not follower.run_once()
        record.append(tmp_path, a_round(1))
        assert not follower.run_once()
        before = len(text(shown))
        assert not follower.run_once()
        assert len(text(shown)) == before, "nothing is new"
        record.append(tmp_path, End("stopped", code="courier"))
        assert follower.run_once()
    assert "stopped after 1 of 2 rounds (courier)" in text(shown)


def test_the_view_names_figures_privacy_sites_bytes_and_the_time_left() -> None:
    run = dataclasses.replace(a_run(40), rounds=tuple(a_round(number) for number in range(1, 11)))
    found = " ".join(seen(run).split())
    for part in (
        "running, 10 of 40 rounds done; about 13 s left", "loss, nats", "AUC, pneumonia", "ε distributed", "δ 0.0001",
        "ε alone, university", "sites in the sum 3 of 3", "from all sites 462 kB", "Not a medical device",
    ):  # fmt: skip
        assert part in found
    assert "0 of 40 rounds" in seen(a_run(40))


def test_of_many_sites_the_largest_epsilon_is_shown() -> None:
    one = dataclasses.replace(a_round(1), epsilon={f"s{place}": float(place) for place in range(30)})
    found = seen(dataclasses.replace(a_run(), sites=tuple(one.epsilon), rounds=(one,)))
    assert "29.000" in found
    assert "28.000" not in found


def test_a_name_cannot_style_the_terminal() -> None:
    run = dataclasses.replace(a_run(), model="[red]x[/red]", rounds=(a_round(1),))
    assert "[red]x[/red]" in seen(run)


def test_a_curve_goes_from_the_lowest_to_the_highest_block_and_is_never_too_wide() -> None:
    assert curve([0.0, 1.0]) == BLOCKS[0] + BLOCKS[-1]
    assert curve([2.0, 2.0]) == BLOCKS[0] * 2
    long = curve([float(value) for value in range(1000)])
    assert (len(long), long[0], long[-1]) == (WIDTH, BLOCKS[0], BLOCKS[-1])


def test_the_command_follows_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for what in (a_run(1), a_round(1), End("finished")):
        record.append(tmp_path, what)
    monkeypatch.setattr(sys, "argv", ["fl-agent", "progress", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "finished; nothing was published" in capsys.readouterr().out
