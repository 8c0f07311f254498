"""`fl-agent simulate`: a federation in one command, and the same numbers with and without frames."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_agent.__main__ import app
from fl_agent.head import RECIPE
from fl_agent.learning import server, terms
from fl_agent.secagg import noise
from fl_agent.simulate import arithmetic
from fl_agent.simulate.cli import simulate
from fl_agent.simulate.data import divide
from tests.fl_agent.federations import federation, finish, plan
from tests.fl_agent.learning.hospitals import examples


@pytest.mark.parametrize("options", [["--secagg"], ["--no-secagg", "--mode", "site", "--local-steps", "2"]])
def test_one_command_runs_a_federation(memory: Path, options: list[str]) -> None:
    found = CliRunner().invoke(
        app, ["simulate", "--sites", "3", "--dp", "--rounds", "3", *options, "--json", str(memory / "figures.json")]
    )
    assert found.exit_code == 0, found.output
    figures = json.loads((memory / "figures.json").read_text())
    assert figures["epsilon"] <= 3.0
    assert figures["epsilon_alone"] >= figures["epsilon"]
    assert sorted(figures["patients"].values()) == [250, 500, 750]
    assert figures["validation"]["auc_pneumonia"] > 0.8
    assert len(figures["loss"]) == 3
    if "--secagg" in options:  # four sums: one more than rounds, of the mean feature
        assert sorted(figures["by_site"]) == sorted(figures["patients"])
        for one in figures["by_site"].values():
            assert one["epsilon_alone"] == pytest.approx(figures["epsilon_alone"])
            assert figures["bytes_up"] < one["bytes_up"] <= 4 * figures["bytes_up"]


def test_a_simulation_has_the_recipes_rounds_unless_told_otherwise() -> None:
    assert inspect.signature(simulate).parameters["rounds"].default == RECIPE.steps


def test_frames_carry_the_same_numbers_as_bare_sums(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise from a known stream, to the last bit."""
    monkeypatch.setattr(noise, "discrete_gaussian", lambda variance, count, source: np.arange(count) % 7)
    with federation(memory) as made:
        agreed = plan(made, rounds=2, spare=0)
        made.coordinator.open(agreed)
        assert finish(made) == "finished"
        current = made.records.newest()
        assert current is not None
        bare = arithmetic.train(agreed, made._sites)
        for name, values in server.published(agreed, current.training).items():
            assert np.array_equal(values, bare.weights[name])
        assert terms.epsilons(agreed) == bare.epsilons


def test_patients_are_dealt_out_unevenly_and_each_once() -> None:
    everybody = examples(100, 1)
    found = divide(everybody, 4, seed=3)
    assert [one.count for one in found.values()] == [10, 20, 30, 40]
    assert sum(len(one.labels) for one in found.values()) == len(everybody.labels)
    images = np.concatenate([one.features for one in found.values()]).reshape(len(everybody.labels), -1)
    assert len(np.unique(images, axis=0)) == len(everybody.labels)
