"""Live progress of a run in the terminal (rich): the same view for a run in this process and for one that is followed.

Curves are the block elements of Unicode (U+2581 to U+2588). Where the output is no terminal, each round is one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from . import record, wording
from .record import RunRecord

BLOCKS: Final = "▁▂▃▄▅▆▇█"
WIDTH: Final = 40
#: Of more sites than this only the largest ε is shown.
MOST_SITES: Final = 6
#: The time that is left is judged by so many of the last rounds.
RECENT: Final = 10
#: Pause between two looks at a record, seconds.
LOOK_EVERY_S: Final = 0.5


class Progress:
    """Shows a run while the block lasts; `show` it whenever its record has grown.

    Parameters
    ----------
    console : Console
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._printed = 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, run: RunRecord) -> None:
        """Show how far the run has come."""
        if self._live is not None:
            self._live.update(view(run), refresh=True)
            return
        for one in run.rounds[self._printed :]:
            parts = [f"round {one.round} of {run.planned}", wording.span(one.seconds)]
            parts.append(f"{one.survivors} of {len(run.sites)} sites")
            parts += [f"loss {one.loss:.3f}"] if one.loss is not None else []
            parts += [f"{wording.metric(name)} {value:.3f}" for name, value in one.metrics.items()]
            parts += [f"ε {one.distributed_epsilon:.3f} distributed"] if one.distributed_epsilon is not None else []
            parts += [f"ε {max(one.epsilon.values()):.3f} alone"] if one.epsilon else []
            self._console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)
        if run.end is not None:
            self._console.print(wording.state(run), markup=False, highlight=False, soft_wrap=True)
        self._printed = len(run.rounds)


class Follower:
    """Shows a run that another process records.

    Parameters
    ----------
    folder : Path
        Of the run.
    progress : Progress
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self._shown: RunRecord | None = None

    def run_once(self) -> bool:
        """Look at the record and show what is new; return whether the run has ended."""
        run = record.read(self._folder)
        if run != self._shown:
            self._progress.show(run)
            self._shown = run
        return run.end is not None


def follow(folder: Path, console: Console, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a run until it ends.

    Raises
    ------
    ConfigError, IntegrityError
        See `record.read`.
    """
    with Progress(console) as progress:
        follower = Follower(folder, progress)
        while not follower.run_once():
            sleep(LOOK_EVERY_S)


def view(run: RunRecord) -> RenderableType:
    """Lay out how far a run has come: progress, curves of loss and metrics, ε, sites and bytes."""
    found, newest = wording.totals(run), run.rounds[-1] if run.rounds else None
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    if newest is not None:
        losses = [one.loss for one in run.rounds if one.loss is not None]
        if losses:
            table.add_row("loss, nats", f"{losses[-1]:.3f}", curve(losses))
        for name in wording.metrics(run):
            values = [one.metrics[name] for one in run.rounds if name in one.metrics]
            table.add_row(escape(wording.metric(name)), f"{values[-1]:.3f}", curve(values))
        if found.distributed is not None:
            table.add_row("ε distributed", f"{found.distributed:.3f}", f"[dim]δ {run.delta:g}[/]")
        if len(newest.epsilon) > MOST_SITES:
            table.add_row("ε alone, largest", f"{found.alone:.3f}")
        else:
            for site, epsilon in newest.epsilon.items():
                table.add_row(f"ε alone, {escape(site)}", f"{epsilon:.3f}")
        table.add_row("sites in the sum", f"{newest.survivors} of {len(run.sites)}")
        table.add_row("from all sites", wording.size(sum(found.up.values())))
        table.add_row("to all sites", wording.size(sum(found.down.values())))
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, run.planned), completed=len(run.rounds), width=WIDTH)
    head.add_row(bar, escape(f"{wording.state(run)}{_left(run)}"))
    title = f"[bold]{escape(run.model)}[/] [dim]{run.run[:8]}, {wording.MODES[run.mode]}[/]"
    return Panel(Group(head, table), title=title, title_align="left", subtitle=f"[dim]{wording.NOTICE}[/]")


def curve(values: Sequence[float]) -> str:
    """Draw values as blocks, the lowest as the lowest block; of many, evenly chosen ones and the last."""
    if len(values) > WIDTH:
        values = [values[round(place * (len(values) - 1) / (WIDTH - 1))] for place in range(WIDTH)]
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def _left(run: RunRecord) -> str:
    if run.end is not None or not run.rounds:
        return ""
    recent = run.rounds[-RECENT:]
    each = sum(one.seconds for one in recent) / len(recent)
    return f"; about {wording.span(each * max(0, run.planned - len(run.rounds)))} left"
