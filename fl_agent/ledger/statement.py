"""What `fl-agent budget` shows: used and left for each patient set, and what each run and model took of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dicom_node.core.training_settings import PrivacySettings

from . import accountant
from .entries import Entry, State
from .ledger import SITE, Ledger


@dataclass(frozen=True)
class Line:
    """Some reservations of one patient set together.

    Attributes
    ----------
    patient_set : str
    name : str
        Of the run or model; that of the set for its total.
    reservations, open : int
        All that count, and those of them that were never closed.
    epsilon, epsilon_alone : float
        At the site's delta, with as many honest peers as the runs agreed on, and with none.
    """

    patient_set: str
    name: str
    reservations: int
    open: int
    epsilon: float
    epsilon_alone: float


@dataclass(frozen=True)
class Statement:
    """The whole account; `left` is by patient set, in the order of `sets`."""

    limits: PrivacySettings
    sets: tuple[Line, ...]
    left: tuple[float, ...]
    runs: tuple[Line, ...]
    models: tuple[Line, ...]


def statement(ledger: Ledger) -> Statement:
    """Add up a ledger; the errors are those of `Ledger.entries`."""
    held = [one for one in ledger.entries() if one.counts]
    delta = ledger.limits.delta
    totals = tuple(
        _line(group, name, delta, lifelong=True) for (name, _), group in _groups(held, lambda one: one.patient_set)
    )
    sets = totals or (Line(SITE, SITE, 0, 0, 0.0, 0.0),)
    runs, models = (
        tuple(_line(group, name, delta, lifelong=not _is_plan(group)) for (_, name), group in _groups(held, key))
        for key in (lambda one: one.run, lambda one: one.model)
    )
    left = tuple(max(0.0, ledger.limits.epsilon - line.epsilon) for line in sets)
    return Statement(ledger.limits, sets, left, runs, models)


def _groups(held: Sequence[Entry], key: Callable[[Entry], str]) -> Iterable[tuple[tuple[str, str], list[Entry]]]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in held:
        groups.setdefault((entry.patient_set, key(entry)), []).append(entry)
    return groups.items()


def _is_plan(group: Sequence[Entry]) -> bool:
    """Tell whether all terms stood before the first release: one reservation that was not cut short."""
    return len(group) == 1 and not group[0].cut


def _line(group: Sequence[Entry], name: str, delta: float, *, lifelong: bool) -> Line:
    losses = [accountant.total(accountant.loss(one.terms, alone=alone) for one in group) for alone in (False, True)]
    shared, alone = (one.lifelong(delta) if lifelong else one.planned(delta) for one in losses)
    unclosed = sum(one.state is not State.SPENT for one in group)
    return Line(group[0].patient_set, name, len(group), unclosed, shared, alone)
