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
from functools import lru_cache
from typing import Any, Final

from ..learning.plan import Descent, Member, Plan
from ..learning.propose import Budget, Features, default_descent, propose

DOMAIN: Final = b"VeilRay search 1\n"
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
    name : str
        Begins the versions of its runs: lower case, digits, dots and hyphens.
    trials : int
        Runs at most.
    rounds, spare : int
        Of each; see `default_descent`.
    budget : Budget
        Of ALL trials together; its `runs` is not read.
    members : tuple of Member
    features : Features
    space : Space
    metrics_weight : float
        Norm of a patient's metrics beside that of the gradient: larger than in other runs, for they decide.
    """

    name: str
    trials: int
    rounds: int
    spare: int
    budget: Budget
    members: tuple[Member, ...]
    features: Features
    space: Space
    metrics_weight: float = 1.0

    @property
    def canonical(self) -> str:
        """One spelling, by which a study knows its search again."""
        values: dict[str, Any] = asdict(self) | {"members": [one.model_dump(mode="json") for one in self.members]}
        return json.dumps(values, sort_keys=True)

    def plan(self, seed: bytes, number: int, chosen: Chosen) -> Plan:
        """Write the plan of a trial; the same every time, so a search that was killed finds its run again.

        Parameters
        ----------
        seed : bytes
            Of the study, random: names of runs are never used again.
        number : int
            Of the trial, from 0.
        chosen : mapping

        Raises
        ------
        ConfigError
            No noise meets the budget (``epsilon``).
        """
        base = _template(self)
        named = hashlib.sha256(DOMAIN + seed + number.to_bytes(4, "big")).digest()[:16].hex()
        changes = {
            "run": named,
            "version": f"{self.name}-{seed.hex()[:8]}-{number}",
            "descent": Descent.model_validate(base.descent.model_dump() | dict(chosen)),
        }
        return Plan.read(base.model_copy(update=changes).content)  # model_copy does not check

    @property
    def template(self) -> Plan:
        """A plan that costs what each trial's does."""
        return _template(self)


@lru_cache(maxsize=8)
def _template(terms: Terms) -> Plan:
    whole, descent = terms.budget, default_descent(terms.rounds, terms.spare)
    return propose(
        terms.name,
        terms.members,
        terms.features,
        Budget(whole.epsilon, whole.delta, whole.mode, whole.honest, runs=terms.trials),
        descent,
        metrics_weight=terms.metrics_weight,
        run=bytes(16),
    )
