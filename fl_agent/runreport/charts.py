"""The charts of a run's report as SVG: axes named with their units, lines told apart without colour, too.

Colours are those of Okabe & Ito (2008), which people of every colour vision tell apart; each line also has its own
dashes and carries its name at its end, so that there is no legend to look up.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import wording
from .record import RunRecord

#: Blue, vermilion, green, purple, orange, sky, each at least 3:1 against white (WCAG 2.2, 1.4.11).
COLOURS: Final = ("#0072b2", "#d55e00", "#00795a", "#aa4f86", "#a86f00", "#2b84b8")
DASHES: Final = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5)), (0, (1, 1)))
INK: Final = "#16262d"
SOFT: Final = "#4d6069"
GRID: Final = "#dde5e8"
#: More sites than this are drawn as a band from the lowest to the highest.
MOST_LINES: Final = 5
STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "run-report",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes
    ----------
    title : str
    about : str
        What it shows, for who cannot see it.
    svg : str
        A whole SVG document.
    """

    title: str
    about: str
    svg: str


@dataclass(frozen=True)
class _Line:
    name: str
    rounds: Sequence[int]
    values: Sequence[float]
    colour: str
    dash: object = "-"
    width: float = 1.9


def charts(run: RunRecord) -> tuple[Chart, ...]:
    """Draw what the run's rounds have: loss, metrics, ε, sites in the sum, seconds and bytes."""
    if not run.rounds:
        return ()
    with mpl.rc_context(STYLE):
        drawn = (_loss(run), _metrics(run), _epsilon(run), _survivors(run), _seconds(run), _bytes(run))
    return tuple(chart for chart in drawn if chart is not None)


def _loss(run: RunRecord) -> Chart | None:
    seen = [(one.round, one.loss) for one in run.rounds if one.loss is not None]
    if not seen:
        return None
    rounds, values = zip(*seen, strict=True)
    about = f"From {values[0]:.3f} in round {rounds[0]} to {values[-1]:.3f} in round {rounds[-1]}."
    figure, axes = _new(f"mean loss per patient, nats{_noise(run)}")
    _draw(axes, [_Line("", rounds, values, COLOURS[0])])
    if min(values) >= 0:  # noise may take it below
        axes.set_ylim(bottom=0)
    return Chart("Loss", about, _svg(figure))


def _metrics(run: RunRecord) -> Chart | None:
    lines, said = [], []
    for place, name in enumerate(wording.metrics(run)):
        seen = [(one.round, one.metrics[name]) for one in run.rounds if name in one.metrics]
        rounds, values = zip(*seen, strict=True)
        label, look = wording.metric(name), place % len(COLOURS)
        lines.append(_Line(label, rounds, values, COLOURS[look], DASHES[look]))
        said.append(f"{label} {values[-1]:.3f}")
    if not lines:
        return None
    figure, axes = _new(f"share of 1{_noise(run)}")
    _draw(axes, lines)
    return Chart("Figures on the sites' own rows", f"In the last round: {', '.join(said)}.", _svg(figure))


def _epsilon(run: RunRecord) -> Chart | None:
    sites = [name for name in run.sites if any(name in one.epsilon for one in run.rounds)]
    found = wording.totals(run)
    if not sites and found.distributed is None:
        return None
    figure, axes = _new(f"ε spent per patient (δ = {run.delta:g})")
    lines, said = [], []
    if found.distributed is not None:
        seen = [(one.round, one.distributed_epsilon) for one in run.rounds if one.distributed_epsilon is not None]
        rounds, values = zip(*seen, strict=True)
        lines.append(_Line("distributed", rounds, values, INK, width=2.8))
        said.append(f"{found.distributed:.3f} distributed")
    if len(sites) > MOST_LINES:
        spent = [one for one in run.rounds if one.epsilon]
        places = [one.round for one in spent]
        low, high = ([pick(one.epsilon.values()) for one in spent] for pick in (min, max))
        axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.25, linewidth=0)
        lines.append(_Line(f"{len(sites)} sites alone", places, high, COLOURS[0]))
        said.append(f"up to {high[-1]:.3f} alone")
    elif sites and len(set(run.rounds[-1].epsilon.values())) == 1:
        spent = [one for one in run.rounds if one.epsilon]
        alike = [max(one.epsilon.values()) for one in spent]
        lines.append(_Line("each site alone", [one.round for one in spent], alike, COLOURS[0], DASHES[1]))
        said.append(f"{alike[-1]:.3f} at each site alone")
    else:
        for place, site in enumerate(sites):
            seen = [(one.round, one.epsilon[site]) for one in run.rounds if site in one.epsilon]
            rounds, values = zip(*seen, strict=True)
            lines.append(_Line(f"{site} alone", rounds, values, COLOURS[place], DASHES[place]))
            said.append(f"{values[-1]:.3f} at {site} alone")
    _draw(axes, lines)
    axes.set_ylim(bottom=0)
    return Chart("Privacy spent", f"At the end: {', '.join(said)}.", _svg(figure))


def _survivors(run: RunRecord) -> Chart:
    rounds, values = [one.round for one in run.rounds], [one.survivors for one in run.rounds]
    figure, axes = _new(f"sites in the sum, of {len(run.sites)}")
    axes.fill_between(rounds, values, step="mid", color=COLOURS[2], alpha=0.2, linewidth=0)
    axes.step(rounds, values, where="mid", color=COLOURS[2], linewidth=1.9)
    axes.set_ylim(0, len(run.sites) + 0.3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    _count_rounds(axes)
    short = sum(value < len(run.sites) for value in values)
    return Chart("Sites in the sum", f"{short} of {len(values)} rounds went on without a site.", _svg(figure))


def _seconds(run: RunRecord) -> Chart:
    rounds, values = [one.round for one in run.rounds], [one.seconds for one in run.rounds]
    figure, axes = _new("seconds per round")
    axes.plot(rounds, values, ".", color=COLOURS[3], markersize=4.5)
    middle = sorted(values)[len(values) // 2]
    _draw(axes, [_Line(f"median {middle:.2g} s", (rounds[0], rounds[-1]), (middle, middle), INK, DASHES[1], 1.2)])
    axes.set_ylim(0, max(values) * 1.12 or 1)
    return Chart("Time", f"Median {middle:.2g} s, longest {max(values):.2g} s.", _svg(figure))


def _bytes(run: RunRecord) -> Chart:
    found = wording.totals(run)
    figure = Figure(figsize=(5.6, max(2.9, 0.62 * len(run.sites) + 1.0)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    widest = max(1, *found.up.values(), *found.down.values())
    for kind, values, shift, colour in (("up", found.up, -0.19, COLOURS[0]), ("down", found.down, 0.19, COLOURS[4])):
        places = [place + shift for place in range(len(run.sites))]
        axes.barh(places, list(values.values()), height=0.32, color=colour)
        for place, value in zip(places, values.values(), strict=True):
            axes.text(value + widest * 0.015, place, f"{wording.size(value)} {kind}", va="center", fontsize=9.5)
    axes.set_yticks(range(len(run.sites)), run.sites)
    axes.set_ylim(len(run.sites) - 0.45, -0.55)
    axes.set_xlim(0, widest * 1.32)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=INK)
    about = f"{wording.size(sum(found.up.values()))} from and {wording.size(sum(found.down.values()))} to all sites."
    return Chart("Bytes over the whole run", about, _svg(figure))


def _new(unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.set_title(unit, loc="left", fontsize=10.5, color=SOFT, pad=9)
    return figure, axes


def _draw(axes: Axes, lines: Sequence[_Line]) -> None:
    """Draw lines over rounds, each with its name at its end, where no other stands."""
    for line in lines:
        marker = "o" if len(line.rounds) == 1 else ""
        axes.plot(
            line.rounds, line.values, linestyle=line.dash, color=line.colour, linewidth=line.width, marker=marker,
            solid_capstyle="round",
        )  # fmt: skip
    _count_rounds(axes)
    low, high = axes.get_ylim()
    least = (high - low) * 0.085
    free = -float("inf")
    for line in sorted((one for one in lines if one.name), key=lambda one: one.values[-1]):
        free = max(line.values[-1], free + least)
        axes.annotate(
            line.name, (1.0, free), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            va="center", color=line.colour, fontsize=9.5, annotation_clip=False,
        )  # fmt: skip


def _noise(run: RunRecord) -> str:
    """Warn that figures may leave their range, as a loss below 0 or a share above 1 does."""
    return "" if run.mode == "none" else ", with noise"


def _count_rounds(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.margins(x=0.01)
    axes.autoscale_view()


def _svg(figure: Figure) -> str:
    with io.StringIO() as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None})
        return stream.getvalue()
