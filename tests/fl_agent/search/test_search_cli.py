"""`fl-agent search`: one command, a result that tells its cost, and a second call that has nothing left to pay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.core.errors import ConfigError, Refused
from fl_agent.__main__ import app


def test_one_command_searches_and_says_what_it_cost(memory: Path) -> None:
    command = [
        "search", "--folder", str(memory / "search"), "--trials", "2", "--rounds", "2", "--epsilon", "2",
        "--learning-rate", "1", "30", "--json", str(memory / "result.json"),
    ]  # fmt: skip
    results = []
    for _ in range(2):
        called = CliRunner().invoke(app, command)
        assert called.exit_code == 0, called.output
        results.append(json.loads((memory / "result.json").read_text()))
    found, again = results
    assert again == found
    assert 1.9 < found["epsilon"] == found["epsilon_of_all_trials"] <= 2.0
    # Two rounds of four that were paid for went back; a life's bound is looser than a plan's.
    assert len(found["site_epsilon_used"]) == 3
    assert all(0.5 < one < 2.6 for one in found["site_epsilon_used"].values())
    assert len(found["trials"]) == 2
    assert all(1 <= one["learning_rate"] <= 30 for one in found["trials"])
    assert "noised" in called.output
    with pytest.raises(ConfigError) as changed:
        CliRunner().invoke(app, [*command, "--trials", "3"], catch_exceptions=False)
    assert changed.value.code == "search-changed"


def test_a_search_that_the_sites_cannot_pay_for_does_not_begin(memory: Path) -> None:
    command = ["search", "--folder", str(memory), "--trials", "2", "--rounds", "2", "--epsilon", "2"]
    with pytest.raises(Refused) as refused:
        CliRunner().invoke(app, [*command, "--site-epsilon", "1.5"], catch_exceptions=False)
    assert refused.value.code == "privacy-budget"
