"""The only door to Optuna (Akiba et al. 2019, arXiv 1907.10902): which values to try next, kept in an SQLite file.

A trial is on the disk before anything is done for it, and stays open until its value is told, so whoever was killed
finds it again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from dicom_node.core.errors import ConfigError

from .terms import Chosen, Terms

NAME: Final = "search"
#: Chosen at random before there is enough to learn from; also of a model of the values, which more parameters need.
FIRST_AT_RANDOM: Final = 4
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Tried:
    """A trial.

    Attributes
    ----------
    number : int
        From 0.
    chosen : mapping
    loss : float or None
        Noised; None where the trial is open or came to nothing.
    open : bool
        Whether it was begun and not closed.
    whole : bool
        Whether all its values were chosen; where a process died before that, no run was begun and nothing was paid.
    """

    number: int
    chosen: Chosen
    loss: float | None
    open: bool
    whole: bool


class Study:
    """The trials of one search.

    Parameters
    ----------
    path : Path
        An SQLite file, made where it is absent.
    terms : Terms

    Raises
    ------
    ConfigError
        The file holds a search on other terms (``search-changed``): its budget was stated for those.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        self._study = optuna.create_study(
            storage=self._storage,
            sampler=optuna.samplers.TPESampler(n_startup_trials=FIRST_AT_RANDOM),
            study_name=NAME,
            direction="minimize",
            load_if_exists=True,
        )
        known = self._study.user_attrs
        if not known:
            # One attribute, so that it is there as a whole or not at all.
            self._study.set_user_attr("search", {"terms": terms.canonical, "seed": secrets.token_hex(16)})
            known = self._study.user_attrs
        if known["search"]["terms"] != terms.canonical:
            raise ConfigError(
                f"{path} holds a search on other terms, and its budget was stated for those: name another file",
                code="search-changed",
            )
        self.seed = bytes.fromhex(known["search"]["seed"])
        space = terms.space
        self._space: dict[str, BaseDistribution] = {
            "learning_rate": FloatDistribution(*space.learning_rate, log=True),
            "clip": FloatDistribution(*space.clip, log=True),
            "momentum": FloatDistribution(*space.momentum),
            "schedule": CategoricalDistribution(space.schedule),
        }

    def ask(self) -> Tried:
        """Begin a trial, durably."""
        number = self._study.ask(self._space).number
        return self.trials()[number]

    def tell(self, trial: Tried, loss: float) -> None:
        """Close a trial with its noised loss."""
        self._study.tell(trial.number, loss)

    def fail(self, trial: Tried) -> None:
        """Close a trial that came to nothing; what it cost stays counted."""
        self._study.tell(trial.number, state=TrialState.FAIL)

    def trials(self) -> list[Tried]:
        """Return all trials, in their order."""
        return [self._tried(one) for one in self._study.get_trials(deepcopy=False)]

    def _tried(self, trial: FrozenTrial) -> Tried:
        return Tried(
            trial.number,
            trial.params,
            trial.value if trial.state is TrialState.COMPLETE else None,
            open=not trial.state.is_finished(),
            whole=trial.params.keys() == self._space.keys(),
        )

    def close(self) -> None:
        """Close the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()
