"""The record of a run for people (`runreport`): what was planned, what each round told, how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..learning import terms
from ..learning.metrics import Metrics
from ..learning.plan import Plan
from ..runreport import record
from ..runreport.record import End, RoundRecord, RunRecord
from .secure_sum import Course


@dataclass(frozen=True)
class Journal:
    """Writes the records of a coordinator's runs.

    Attributes
    ----------
    path : Path
        Holds a folder for each run.
    clock : callable
        Seconds since the epoch.
    """

    path: Path
    clock: Callable[[], float]

    def folder(self, plan: Plan) -> Path:
        """Return where a run's record is."""
        return self.path / plan.run

    def begun(self, plan: Plan) -> None:
        """Write the head of the record, once."""
        if (self.folder(plan) / record.FILE).exists():
            return
        descent = plan.descent
        chosen = {
            "rounds of the descent": str(descent.rounds), "sampling rate": f"{descent.sampling_rate:g}",
            "clip": f"{descent.clip:g}", "learning rate": f"{descent.learning_rate:g}",
            "momentum": f"{descent.momentum:g}", "noise multiplier": f"{descent.noise_multiplier:g}",
            "local steps": str(descent.local_steps), "honest hospitals": str(plan.honest), "plan": plan.digest.hex(),
        }  # fmt: skip
        record.append(
            self.folder(plan),
            RunRecord(
                run=plan.run,
                model=f"{plan.network} {plan.version}",
                mode=plan.mode,
                delta=plan.delta,
                sites=tuple(one.name for one in plan.members),
                planned=plan.sums,
                started_at=self.clock(),
                settings=chosen,
            ),
        )

    def summed(
        self, plan: Plan, done: int, seconds: float, survivors: int, course: Course, measured: Metrics | None,
        counted: tuple[int, ...],
    ) -> None:  # fmt: skip
        """Write what a round told.

        Parameters
        ----------
        done : int
            Sums so far.
        seconds : float
        survivors : int
        course : Course
        measured : Metrics or None
            Where the round measured the model.
        counted : tuple of int
            Rounds of each kind that were opened so far, which is what they cost.
        """
        cost = terms.epsilons(plan, counted)
        record.append(
            self.folder(plan),
            RoundRecord(
                round=done,
                seconds=seconds,
                survivors=survivors,
                bytes_up=dict(course.up),
                bytes_down=dict(course.down),
                loss=None if measured is None else measured.loss,
                metrics={} if measured is None else {"auc": measured.auc, "accuracy": measured.accuracy},
                epsilon={one.name: cost.alone for one in plan.members},
                distributed_epsilon=cost.claimed if plan.mode == "distributed" else None,
            ),
        )

    def ended(self, plan: Plan, end: End) -> None:
        """Write how the run ended."""
        record.append(self.folder(plan), end)
