"""A search over the hospitals of a coordinator's settings: through its courier, on its terms, in everybody's ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.core import settings
from dicom_node.core.errors import ConfigError, Refused
from dicom_node.core.training_settings import PrivacySettings
from fl_agent.__main__ import app
from fl_agent.coordinator.records import FINISHED
from fl_agent.coordinator.service import opened, plan_of
from fl_agent.coordinator.settings import CoordinatorSettings
from fl_agent.courier import unix
from fl_agent.ledger import accountant
from fl_agent.ledger.entries import State
from fl_agent.search import service
from fl_agent.search.search import Found
from fl_agent.search.terms import Space, Terms
from fl_agent.simulate.drawn import draw
from fl_agent.simulate.federation import Federation
from secure_infer.network import Trunk
from tests.fl_agent import federations

TAPS = ("stem",)
TRIALS = 2


class Hospitals:
    """Three agents behind sockets, once they are `start`ed, and the settings of their coordinator."""

    def __init__(self, folder: Path, made: Federation) -> None:
        self.made, self.file, self.agents = made, folder / "coordinator.toml", list[unix.Server]()
        self.sockets = {one.name: folder / f"{one.name}.sock" for one in made.members}
        members = [
            f'[[members]]\nname = "{one.name}"\nidentity = "{one.identity}"\npatients = {one.patients}\n'
            f'socket = "{self.sockets[one.name]}"\n'
            for one in made.members
        ]
        self.file.write_text(
            f'state_dir = "{folder / "searching"}"\nkey_file = "{folder / "coordinator.pem"}"\n'
            f'publisher_key_file = "{folder / "publisher.pem"}"\n{"".join(members)}'
            "[population]\nmin_age_years = 1\nmax_age_years = 5\n"
            '[run]\nversion = "2.0.0"\nepsilon = 6.0\ndelta = 1e-3\nrounds = 2\nspare = 1\nsampling_rate = 0.5\n'
            f'trunk = {{name = "efficientnet-lite0", taps = {list(TAPS)}, side = 224, regions = 1}}\n'
            '[courier]\nkind = "local"\n'
        )
        self.loaded = settings.read(self.file, CoordinatorSettings)
        self.loaded.state_dir.mkdir()
        self.waited = 0

    def start(self, seconds: float = 0.0) -> None:
        """What the search does when nobody is there: it waits, and then they come."""
        self.waited += 1
        self.agents = [unix.serve(path, self.made.hospitals[name].agent.handle) for name, path in self.sockets.items()]

    def terms(self, trials: int = TRIALS) -> Terms:
        return service.terms_of(self.loaded, trials, Space(learning_rate=(0.5, 5.0)))

    def search(self) -> Found:
        return service.search(self.loaded, self.terms(), lambda trial, of, done, sums: None, self.start)


@pytest.fixture(params=[12.0])
def hospitals(memory: Path, request: pytest.FixtureRequest) -> Iterator[Hospitals]:
    sites = {f"site-{number}": draw(20 + number, Trunk(TAPS).channels, number) for number in range(3)}
    for name in sites:
        (memory / name).mkdir()
        (memory / name / "site.sqlite3").write_bytes(federations.template())
    with Federation(memory, sites, PrivacySettings(epsilon=request.param, delta=1e-3)) as made:
        one = Hospitals(memory, made)
        yield one
        for agent in one.agents:
            agent.close()


def test_trials_are_runs_on_the_coordinators_terms_and_every_ledger_has_them(hospitals: Hospitals) -> None:
    found = hospitals.search()
    assert hospitals.waited == 1  # they were away at first
    assert len(found.trials) == TRIALS
    assert found.best is not None
    assert 5.9 < found.whole.claimed <= 6.0
    with opened(hospitals.loaded, None) as (_, records):
        assert not records.has("2.0.0")  # the model's own run comes afterwards
        newest = records.newest()
    assert newest is not None
    assert (newest.over, newest.untold) == (FINISHED, frozenset())
    plan = newest.plan
    assert plan.population == hospitals.loaded.population
    assert plan.trunk.taps == TAPS
    assert (plan.descent.sampling_rate, plan.descent.rounds, plan.metrics_weight) == (0.5, 2, 1.0)
    assert plan.version.startswith("2.0.0-")
    for hospital in hospitals.made.hospitals.values():
        entries = hospital.ledger.entries()
        assert {one.state for one in entries} == {State.SPENT}
        assert len({one.run for one in entries}) == TRIALS
        spent = accountant.total(accountant.loss(one.terms) for one in entries).planned(1e-3)
        assert 0.5 * found.spent.claimed < spent < found.spent.claimed  # what no round used was given back
    assert hospitals.search() == found  # there is nothing left to do, and nobody to wait for
    assert not list(hospitals.loaded.state_dir.glob("models/*"))


@pytest.mark.parametrize("hospitals", [5.0], indirect=True)
def test_a_hospital_whose_budget_does_not_suffice_ends_the_search(hospitals: Hospitals) -> None:
    with pytest.raises(Refused, match="privacy-budget") as refused:
        hospitals.search()
    assert refused.value.code == "privacy-budget"
    for hospital in hospitals.made.hospitals.values():
        held = accountant.total(accountant.loss(one.terms) for one in hospital.ledger.entries() if one.counts)
        assert held.lifelong(1e-3) <= 5.0


def test_a_search_lets_a_run_that_goes_on_alone(hospitals: Hospitals) -> None:
    with opened(hospitals.loaded, None) as (coordinator, records):
        coordinator.open(plan_of(hospitals.loaded))
        with pytest.raises(ConfigError, match=r"2\.0\.0 goes on") as error:
            hospitals.search()
        assert error.value.code == "run-exists"
        newest = records.newest()
        assert newest is not None
        assert newest.plan.version == "2.0.0"


def test_the_command_takes_the_coordinators_terms_and_no_others(hospitals: Hospitals) -> None:
    command = [
        "search",
        "--config",
        str(hospitals.file),
        "--trials",
        "1",
        "--json",
        str(hospitals.file.parent / "json"),
    ]
    for option in (["--epsilon", "2"], ["--sites", "4"], ["--folder", "x"]):
        refused = CliRunner().invoke(app, [*command, *option])
        assert refused.exit_code == 2
        assert option[0] in refused.output
    assert CliRunner().invoke(app, ["search"]).exit_code == 2
    hospitals.start()
    called = CliRunner().invoke(app, command)
    assert called.exit_code == 0, called.output
    assert "1 trials on 3 hospitals" in called.output
    assert "fl-agent budget" in called.output
