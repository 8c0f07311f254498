"""The README says what the program does: its commands exist, its paths lead somewhere, its figures are the card's."""

from __future__ import annotations

import importlib
import itertools
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secure_infer.models import SHIPPED, ModelStore

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MODULES = {name: f"{name.replace('-', '_')}.__main__" for name in ("dicom-node", "secure-infer", "fl-agent")}
ROWS = {
    "pneumonia AUC": "auc_pneumonia",
    "bacterial/viral AUC": "auc_bacterial_viral",
    "accuracy, three classes": "accuracy_three_classes",
    "sensitivity at 0.5": "sensitivity_at_half",
    "specificity at 0.5": "specificity_at_half",
}


def help_of(program: str, command: list[str]) -> str:
    app = importlib.import_module(MODULES[program]).app
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, f"{program} {command}: {result.output}"
    return result.output


def mentioned() -> set[tuple[str, str]]:
    """Every command that the README names, as (program, command)."""
    found = set(re.findall(r"\b(dicom-node|secure-infer|fl-agent) ([a-z]+)\b", README))
    for program, listed in re.findall(r"`(dicom-node|secure-infer|fl-agent) [a-z]+`((?:, `[a-z]+`)+)", README):
        found |= {(program, command) for command in re.findall(r"`([a-z]+)`", listed)}
    return found


@pytest.mark.parametrize(("program", "command"), sorted(mentioned()))
def test_a_command_of_the_readme_exists(program: str, command: str) -> None:
    assert help_of(program, [command])


def test_every_option_that_the_readme_shows_exists() -> None:
    for program, rest in re.findall(r"\.venv/bin/(dicom-node|fl-agent) ([^\n#]+)", README):
        words = rest.split()
        command = list(itertools.takewhile(re.compile("[a-z]+(?:-[a-z]+)*").fullmatch, words))
        text = help_of(program, command)
        for option in (word for word in words if word.startswith("--")):
            assert option in text, f"{program} {command} has no {option}"


def test_every_path_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:orthanc_config|secure_infer|dicom_node|fl_agent|tests)/[\w./-]*)`", README)
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+) ", README)) | set(re.findall(r"`make ([a-z]+)`", README))
    assert {"demo", "test", "setup"} <= named <= targets


def test_the_figures_are_those_of_the_shipped_card() -> None:
    store = ModelStore(SHIPPED)
    card = store.card(store.active())
    assert f"version {card.version}" in README
    assert f"ε = {card.privacy.epsilon}, δ = {card.privacy.delta}" in README
    for label, name in ROWS.items():
        figure = card.figure(name)
        assert f"| {label} | {figure.value:.3f} | {figure.low:.3f} to {figure.high:.3f} |" in README


def test_the_version_has_one_home() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    newest = re.search(r"^## (\d+\.\d+\.\d+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
