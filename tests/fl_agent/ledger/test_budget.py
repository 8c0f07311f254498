"""The command `fl-agent budget` on a site's settings: tables, JSON and exit statuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node.core import settings
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError, IntegrityError
from fl_agent.__main__ import main
from fl_agent.ledger.accountant import loss, total
from fl_agent.ledger.ledger import Ledger
from fl_agent.ledger.statement import statement
from tests.fl_agent.ledger.site import reserve, training

SITE = """
[site]
name = "here"
state_dir = "{folder}"
[inference]
engine = "plaintext"
[training.privacy]
epsilon = 6.0
delta = 1e-6
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE.format(folder=tmp_path))
    return path


@pytest.fixture
def ledger(config: Path):
    loaded = settings.load(config)
    database = Database(loaded.database_url)
    database.migrate()
    yield Ledger(database, loaded.training.privacy)
    database.close()


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command as its program runs it, in this process: exit status, standard output and standard error."""

    def run(config: Path, *options: str) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["fl-agent", "budget", "--config", str(config), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_it_shows_used_and_left_by_set_run_and_model(budget, ledger: Ledger, config: Path) -> None:
    first = reserve(ledger, 100, run="run-[a]", model="model-1")
    ledger.begin(first)
    ledger.spend(first)
    reserve(ledger, 50, run="run-b", model="model-1")
    ledger.release(reserve(ledger, 50, run="run-c", model="model-2"))
    target = config.with_suffix(".json")
    status, shown, _ = budget(config, "--json", str(target))
    assert status == 0
    account = json.loads(target.read_text())
    both = total([loss(training(100)), loss(training(50))])
    used = both.lifelong(1e-6)
    (whole,) = account["sets"]
    assert whole["epsilon"] == pytest.approx(used)
    assert whole["left"] == pytest.approx(6.0 - used)
    assert (whole["reservations"], whole["open"]) == (2, 1)
    runs = {line["name"]: line for line in account["runs"]}
    assert set(runs) == {"run-[a]", "run-b"}
    assert runs["run-[a]"]["epsilon"] == pytest.approx(loss(training(100)).planned(1e-6))
    assert [line["name"] for line in account["models"]] == ["model-1"]
    assert account["models"][0]["epsilon"] == pytest.approx(used)
    for text in ("run-[a]", "run-b", "model-1", "epsilon 6, delta 1e-06"):
        assert text in shown


def test_a_run_that_was_cut_short_is_bounded_as_an_adaptive_one(ledger: Ledger) -> None:
    token = reserve(ledger, 100)
    ledger.begin(token)
    ledger.spend(token, 60)
    (run,) = statement(ledger).runs
    assert run.epsilon == pytest.approx(loss(training(60)).lifelong(1e-6))


def test_an_unused_ledger_has_everything_left(ledger: Ledger) -> None:
    account = statement(ledger)
    assert account.left == (6.0,)
    assert account.runs == account.models == ()


def test_faults_end_with_a_sentence_and_their_exit_status(budget, ledger: Ledger, config: Path) -> None:
    status, out, sentence = budget(config.with_name("absent.toml"))
    assert (status, out) == (ConfigError.exit_status, "")
    assert sentence.startswith("config: cannot read")
    reserve(ledger)
    database = Database(settings.load(config).database_url)
    with database.write() as connection:
        connection.execute(sa.text("DROP TRIGGER privacy_ledger_no_update"))
        connection.execute(sa.text("UPDATE privacy_ledger SET run = 'other'"))
    status, _, sentence = budget(config)
    assert status == IntegrityError.exit_status
    assert sentence.startswith("ledger-altered: ")
    with database.write() as connection:
        connection.execute(sa.text("DROP TABLE alembic_version"))
    database.close()
    status, _, sentence = budget(config)
    assert status == ConfigError.exit_status
    assert sentence.startswith("schema: ")
