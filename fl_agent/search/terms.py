"""What a search tries, and what all of it costs, stated before its first trial.

Hyper-parameters tell of the data by which they were chosen (Papernot & Steinke 2022, arXiv 2110.03620). Every trial is
a run with noise of its own, and all trials compose, so whatever is chosen by their noised losses is covered by the
search's epsilon. Nothing that is searched changes what a round costs, so every trial costs the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from ..learning.plan import Descent, Plan

DOMAIN: Final = b"VeilRay search 1\n"
#: Norm of a patient's metrics beside that of the gradient: larger than in other runs, for they decide.
METRICS_WEIGHT: Final = 1.0
#: Values of the searched parameters, by their names in `Descent`.
Chosen = Mapping[str, float | str]


@dataclass(frozen=True)
class Space:
    """What is searched; the ends of a range are within it, and a range of one value is not searched.

    Attributes
    ----------
    learning_rate, clip : tuple of float
        Lowest and highest, above 0; searched on a logarithmic scale.
    momentum : tuple of float
        Lowest and highest, from 0, below 1.
    schedule : tuple of str
        Of `Descent.schedule`.
    """

    learning_rate: tuple[float, float] = (1.0, 100.0)
    clip: tuple[float, float] = (0.05, 1.0)
    momentum: tuple[float, float] = (0.0, 0.95)
    schedule: tuple[str, ...] = ("constant", "cosine")


@dataclass(frozen=True)
class Terms:
    """A search.

    Attributes
    ----------
    trials : int
        Runs at most.
    template : Plan
        What each trial costs, and all of it that is not searched: its noise is such that ALL trials together meet the
        budget (`Budget.runs`). Its version begins those of the trials; its run is not read.
    space : Space
    """

    trials: int
    template: Plan
    space: Space

    @property
    def canonical(self) -> str:
        """One spelling, by which a study knows its search again."""
        plan = self.template.model_dump(mode="json", exclude={"run"})
        return json.dumps({"trials": self.trials, "plan": plan, "space": asdict(self.space)}, sort_keys=True)

    def plan(self, seed: bytes, number: int, chosen: Chosen) -> Plan:
        """Write the plan of a trial; the same every time, so a search that was killed finds its run again.

        Parameters
        ----------
        seed : bytes
            Of the study, random: names of runs are never used again.
        number : int
            Of the trial, from 0.
        chosen : mapping
        """
        base = self.template
        changes = {
            "run": hashlib.sha256(DOMAIN + seed + number.to_bytes(4, "big")).digest()[:16].hex(),
            "version": f"{base.version}-{seed.hex()[:8]}-{number}",
            "descent": Descent.model_validate(base.descent.model_dump() | dict(chosen)),
        }
        return Plan.read(base.model_copy(update=changes).content)  # model_copy does not check
