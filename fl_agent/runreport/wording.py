"""A run's record in plain words and with units (SI prefixes of powers of ten, ISO/IEC 80000-1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from .record import RunRecord

NOTICE: Final = "Research use. Not a medical device. A model from this run answers nothing until a site accepts it."
#: Who adds the noise, in few words, and what follows.
MODES: Final = {
    "none": "no differential privacy",
    "site": "each hospital adds all noise itself",
    "distributed": "each hospital adds a share of the noise",
}
CONSEQUENCES: Final = {
    "none": (
        "No noise was added: what the sums tell about single patients is not bounded, and no model may be published."
    ),
    "site": (
        "The ε of a hospital holds for its patients even if the coordinator and every other hospital work together "
        "against it."
    ),
    "distributed": (
        "The smaller ε (distributed) holds while as many hospitals as agreed keep their share of the noise to "
        "themselves. The larger one (alone) holds even if all others work together against a hospital."
    ),
}
UNITS: Final = ("B", "kB", "MB", "GB", "TB")
METRICS: Final = {
    "auc": "AUC, pneumonia",
    "accuracy": "accuracy, three classes",
    "auc_pneumonia": "AUC, pneumonia",
    "auc_bacterial_viral": "AUC, bacterial/viral",
    "accuracy_three_classes": "accuracy, three classes",
    "sensitivity_at_half": "sensitivity at 0.5",
    "specificity_at_half": "specificity at 0.5",
}


@dataclass(frozen=True)
class Totals:
    """Sums over a run so far.

    Attributes
    ----------
    seconds : float
    up, down : dict of str to int
        Bytes from and to each site.
    alone : float or None
        The largest ε of any site, as if all others colluded; None without differential privacy.
    distributed : float or None
    """

    seconds: float
    up: dict[str, int]
    down: dict[str, int]
    alone: float | None
    distributed: float | None


def totals(run: RunRecord) -> Totals:
    """Add up the rounds of a run."""
    newest = run.rounds[-1] if run.rounds else None
    return Totals(
        sum(one.seconds for one in run.rounds),
        {site: sum(one.bytes_up.get(site, 0) for one in run.rounds) for site in run.sites},
        {site: sum(one.bytes_down.get(site, 0) for one in run.rounds) for site in run.sites},
        max(newest.epsilon.values(), default=None) if newest else None,
        newest.distributed_epsilon if newest else None,
    )


def metric(name: str) -> str:
    """Name a metric for people; one that is not known here is shown as it is called."""
    return METRICS.get(name, name.replace("_", " "))


def metrics(run: RunRecord) -> tuple[str, ...]:
    """Name the metrics that any round has, in the order in which they appear."""
    return tuple(dict.fromkeys(name for one in run.rounds for name in one.metrics))


def state(run: RunRecord) -> str:
    """Say where the run stands."""
    if run.end is None:
        return f"running, {len(run.rounds)} of {run.planned} rounds done"
    if run.end.outcome == "published":
        return f"finished; published as candidate {run.end.candidate}"
    if run.end.outcome == "finished":
        return "finished; nothing was published"
    return f"stopped after {len(run.rounds)} of {run.planned} rounds ({run.end.code or 'by a person'})"


def size(count: float) -> str:
    """Write a number of bytes with three digits."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} {UNITS[power]}" if not power or count >= 99.95 else f"{count:.3g} {UNITS[power]}"


def span(seconds: float) -> str:
    """Write a time span with the two units that matter."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(at: float) -> str:
    """Write a time in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
