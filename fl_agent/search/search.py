"""Trial after trial: each is a federated run whose noised losses are all that the search ever sees.

What is durable, in this order: the trial (`study`), its run (the coordinator's records), each site's reservation (its
ledger), the sums, the loss (`study`). Names of runs follow from the trial's number, so a search that was killed
anywhere goes on with the same run, which no site pays for twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dicom_node.core import failpoint
from dicom_node.core.errors import ConfigError, Refused, Unavailable

from ..coordinator.coordinator import Coordinator
from ..coordinator.records import FINISHED, Records
from ..learning import metrics
from ..learning.plan import Plan
from ..learning.terms import DESCENT, Epsilons, composed, releases, spendings
from ..ledger.ledger import Ledger
from ..runreport import record
from .study import Study, Tried
from .terms import Terms

#: Share of the last rounds whose noised losses are averaged.
JUDGED: Final = 0.25
Progress = Callable[[int, int, int, int], None]


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes
    ----------
    trials : tuple of Tried
        All that had a run.
    best : Tried or None
        The least noised loss; None where no trial came to its end.
    spent : Epsilons
        What the trials cost each patient, composed.
    whole : Epsilons
        What all trials cost that the search may make.
    loss_noise : float
        Standard deviation that the noise alone gives a trial's loss; losses nearer than this are not told apart.
    """

    trials: tuple[Tried, ...]
    best: Tried | None
    spent: Epsilons
    whole: Epsilons
    loss_noise: float


class Search:
    """A search over the federation of a coordinator.

    Parameters
    ----------
    terms : Terms
    study : Study
        On the same terms.
    coordinator : Coordinator
        Without a publisher; it has no other runs while the search goes on.
    records : Records
        The coordinator's.
    ledgers : mapping of str to Ledger
        Of the sites that are at hand, which are asked for the whole search before its first trial. The others refuse
        the first trial that their budget does not allow.
    """

    def __init__(
        self, terms: Terms, study: Study, coordinator: Coordinator, records: Records, ledgers: Mapping[str, Ledger]
    ) -> None:
        self._terms, self._study, self._ledgers = terms, study, ledgers
        self._coordinator, self._records = coordinator, records

    def run(self, progress: Progress = lambda trial, trials, done, sums: None) -> Found:
        """Make the trials that are left; the same after a kill.

        Parameters
        ----------
        progress : callable
            Called with (trial from 1, of all, sums done, of all).

        Raises
        ------
        Refused
            A site's budget does not allow the search (``privacy-budget``), or a site refused a trial's plan.
        ConfigError
            Another run of this coordinator goes on (``run-exists``).
        Unavailable
            Too few sites answered; call again later.
        """
        self._require_budget()
        for trial in self._study.trials():
            if trial.open:
                self._try(trial, progress)
        while len(self._paid()) < self._terms.trials:
            trial = self._study.ask()
            failpoint.reach("search-asked")
            self._try(trial, progress)
        return self.found()

    def found(self) -> Found:
        """Say what is known so far."""
        trials = self._paid()
        plan = self._terms.template
        ended = [one for one in trials if one.loss is not None]
        return Found(
            trials=tuple(trials),
            best=min(ended, key=lambda one: one.loss if one.loss is not None else math.inf, default=None),
            spent=composed(plan, len(trials)),
            whole=composed(plan, self._terms.trials),
            loss_noise=_loss_noise(plan),
        )

    def _paid(self) -> list[Tried]:
        return [one for one in self._study.trials() if one.whole]

    def _require_budget(self) -> None:
        plan = self._terms.template
        begun = sum(self._records.has(self._plan(one).version) for one in self._paid())
        left = self._terms.trials - begun
        for name, ledger in self._ledgers.items():
            patients = next(one.patients for one in plan.members if one.name == name)
            try:
                ledger.require([one for kind in releases(plan) for one in spendings(plan, kind, patients)] * left)
            except Refused as error:
                raise Refused(
                    f"{name} cannot pay for the {left} trials that are left: {error}", code=error.code
                ) from error

    def _plan(self, trial: Tried) -> Plan:
        return self._terms.plan(self._study.seed, trial.number, trial.chosen)

    def _try(self, trial: Tried, progress: Progress) -> None:
        if not trial.whole:
            self._study.fail(trial)
            return
        plan = self._plan(trial)
        if not self._records.has(plan.version):
            before = self._records.newest()
            if before is not None and not before.over:
                raise ConfigError(
                    f"the run for model {before.plan.version} goes on: let it come to its end first", code="run-exists"
                )
            self._coordinator.open(plan)
        failpoint.reach("search-opened")
        how = self._followed(plan, progress)
        if how != FINISHED:
            self._study.fail(trial)
            if how in {"contributions-used", "run-over"}:
                return  # too many rounds were lost; the next trial may have more luck
            raise Refused(f"the sites refused a trial with the code {how}: read their logs", code=how)
        rounds = record.read(self._coordinator.folder(plan)).rounds
        losses = [one.loss for one in rounds if one.loss is not None]
        late = losses[-max(1, round(JUDGED * plan.descent.rounds)) :]
        failpoint.reach("search-measured")
        self._study.tell(trial, sum(late) / len(late))

    def _followed(self, plan: Plan, progress: Progress) -> str:
        """Drive a trial's run to its end and return how it ended."""
        paid = len(self._paid())
        while True:
            try:
                going = self._coordinator.run_once()
            except Unavailable:
                # A run that the sites refuse ends with this error, too; any other is for the caller to wait out.
                current = self._records.newest()
                if current is None or not current.over:
                    raise
                going = True
            current = self._records.newest()
            if current is None or current.plan.run != plan.run:
                raise ConfigError("another run was opened while the search went on: let it alone", code="run-exists")
            progress(paid, self._terms.trials, current.training.done, plan.sums)
            if not going:
                return current.over


def _loss_noise(plan: Plan) -> float:
    """Return the standard deviation of a trial's loss that noise alone makes, with the draws of all members."""
    release = next(one for one in releases(plan) if one.name == DESCENT)
    members, patients = len(plan.members), sum(one.patients for one in plan.members)
    each = release.noise_multiplier * metrics.NORM / plan.metrics_weight * metrics.LARGEST_LOSS / patients
    if plan.mode == "distributed":
        each *= release.norm / release.sampling_rate * math.sqrt(members / plan.honest)
    else:
        each *= math.sqrt(members)
    return each / math.sqrt(max(1, round(JUDGED * plan.descent.rounds)))
