"""A search pays for every trial, sees noised sums alone, and goes on after a kill where it was."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.core.errors import ConfigError, Refused
from dicom_node.core.training_settings import PrivacySettings
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.terms import epsilons
from fl_agent.ledger import accountant
from fl_agent.ledger.entries import State
from fl_agent.runreport import record
from fl_agent.search.search import Search
from fl_agent.search.study import Study
from fl_agent.search.terms import METRICS_WEIGHT, Space, Terms
from fl_agent.simulate import arithmetic
from fl_agent.simulate.federation import Federation
from tests.fl_agent import federations
from tests.fl_agent.learning.hospitals import CHANNELS
from tests.fl_agent.trunks import setup

#: Of a life, whose bound is a little looser than a plan's.
ENOUGH = PrivacySettings(epsilon=12.0, delta=1e-3)
TRIALS = 2


def terms(made: Federation, trials: int = TRIALS, rounds: int = 2, spare: int = 1) -> Terms:
    features, budget = (
        Features(setup("head"), ("plain", "mirrored"), CHANNELS),
        Budget(6.0, 1e-3, "distributed", runs=trials),
    )
    descent = default_descent(rounds, spare)
    plan = propose("try", made.members, features, budget, descent, metrics_weight=METRICS_WEIGHT)
    return Terms(trials, plan, Space(learning_rate=(0.5, 5.0)))


@contextmanager
def searching(
    folder: Path, privacy: PrivacySettings = ENOUGH, **changes: int
) -> Iterator[tuple[Federation, Search, Study]]:
    """What a process has after its start: whatever lies on the disk."""
    with federations.federation(folder, privacy=privacy) as made:
        agreed = terms(made, **changes)
        study = Study(folder / "study.sqlite3", agreed)
        ledgers = {name: one.ledger for name, one in made.hospitals.items()}
        yield made, Search(agreed, study, made.coordinator, made.records, ledgers), study
        study.close()


def test_all_trials_cost_what_the_accountant_makes_of_the_ledgers(memory: Path) -> None:
    with searching(memory) as (made, search, _):
        found = search.run()
        for hospital in made.hospitals.values():
            spent = [one for one in hospital.ledger.entries() if one.counts]
            assert len({one.run for one in spent}) == TRIALS
            assert {one.state for one in spent} == {State.SPENT}  # each site heard of each trial's end
            # As reserved; what no round used goes back at a run's end and is not claimed back here.
            whole = accountant.total(
                accountant.loss(one.terms.model_copy(update={"steps": 3 if one.terms.name == "head" else 2}))
                for one in spent
            )
            assert whole.planned(1e-3) == pytest.approx(found.whole.claimed, rel=1e-12)
        assert 5.9 < found.whole.claimed <= 6.0
        assert found.spent == found.whole
        plan = search._terms.template
        assert epsilons(plan).claimed < found.whole.claimed / 1.3
        # Each trial was judged by what the record, which anybody may read, says of its run.
        assert len(found.trials) == TRIALS
        for trial in found.trials:
            run = record.read(made.coordinator.folder(search._plan(trial))).rounds
            assert trial.loss == run[-1].loss
        assert found.best == min(found.trials, key=lambda one: one.loss)
        assert len({one.chosen["learning_rate"] for one in found.trials}) == TRIALS
        assert search.run() == found  # there is nothing left to do, and nothing to pay


def test_a_search_beyond_a_sites_budget_does_not_begin(memory: Path) -> None:
    # One trial would fit.
    with searching(memory, PrivacySettings(epsilon=6.0, delta=1e-3)) as (made, search, study):
        with pytest.raises(Refused, match="2 trials") as error:
            search.run()
        assert error.value.code == "privacy-budget"
        assert study.trials() == []
        assert made.records.newest() is None
        assert all(not one.ledger.entries() for one in made.hospitals.values())


def test_a_site_that_was_not_asked_before_refuses_the_trial_that_is_too_much(memory: Path) -> None:
    with searching(memory, PrivacySettings(epsilon=6.0, delta=1e-3)) as (made, search, study):
        search._ledgers = {}
        with pytest.raises(Refused) as error:
            search.run()
        assert error.value.code == "privacy-budget"
        *before, last = study.trials()
        assert 1 <= len(before) < TRIALS
        assert all(one.loss is not None for one in before)
        assert last.loss is None
        for hospital in made.hospitals.values():
            held = [one.terms for one in hospital.ledger.entries() if one.counts]
            assert accountant.total(map(accountant.loss, held)).lifelong(1e-3) <= 6.0


@pytest.mark.parametrize("place", ["search-asked", "coordinator-summed", "search-measured"])
def test_a_search_that_was_killed_goes_on_and_pays_for_nothing_twice(
    memory: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with searching(memory) as (_, search, study), monkeypatch.context() as patch:
        federations.kill_at(patch, place)
        with pytest.raises(federations.Killed):
            search.run()
        (begun,) = study.trials()
        assert begun.open
    with searching(memory) as (made, search, _):
        found = search.run()
        assert [one.number for one in found.trials] == [0, 1]
        assert found.trials[0].chosen == begun.chosen
        assert all(one.loss is not None for one in found.trials)
        for hospital in made.hospitals.values():
            held = [one for one in hospital.ledger.entries() if one.counts]
            assert sorted({(one.run, one.terms.name) for one in held}) == sorted(
                (one.run, one.terms.name) for one in held
            )
            assert len(held) == 2 * TRIALS


def test_a_trial_whose_values_were_not_all_chosen_costs_nothing_and_is_not_counted(memory: Path) -> None:
    with searching(memory) as (made, search, study):
        study._study.ask({"clip": study._space["clip"]})  # as if killed half-way
        found = search.run()
        assert [one.number for one in found.trials] == [1, 2]
        assert [one.whole for one in study.trials()] == [False, True, True]
        runs = {one.run for one in made.hospitals["site-0"].ledger.entries()}
        assert len(runs) == TRIALS


def test_a_study_goes_on_with_its_own_terms_alone(memory: Path) -> None:
    with searching(memory) as (_, search, _):
        canonical = search._terms.canonical
        assert json.loads(canonical)["trials"] == TRIALS
    with pytest.raises(ConfigError) as error, searching(memory, trials=TRIALS + 1):
        raise AssertionError
    assert error.value.code == "search-changed"


def test_the_noise_in_a_trials_loss_is_what_is_stated(memory: Path) -> None:
    with searching(memory, trials=1, rounds=60, spare=0) as (_, search, _):
        still = Space(
            (1e-9, 1e-9), (0.1, 0.1), (0.0, 0.0), ("constant",)
        )  # no step worth the name: noise alone differs
        search._terms = dataclasses.replace(search._terms, space=still)
        plan = search._terms.plan(bytes(16), 0, {"learning_rate": 1e-9})
        losses = [one.loss for one in arithmetic.train(plan, federations.sites()).metrics]
        deviation = statistics.stdev(losses) / 15**0.5  # a trial is judged by the mean of its last quarter
        assert 0.6 < deviation / search.found().loss_noise < 1.5
