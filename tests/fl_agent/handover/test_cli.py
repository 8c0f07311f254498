"""The commands `fl-agent candidates ...` as an administrator types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node.core.errors import ConfigError, Refused
from fl_agent.__main__ import main
from secure_infer import site_models
from tests.fl_agent.handover import consortium
from tests.secure_infer.small_model import PUBLISHER_HEX

Command = Callable[..., tuple[int, str]]
SITE = """
[site]
name = "here"
state_dir = "{folder}/state"
[inference]
engine = "plaintext"
trusted_publishers = ["{key}"]
[training.handover]
publisher = "{key}"
minimal_patients = {least}
acceptance = "{acceptance}"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command in this process: exit status, and what it wrote."""

    def run(*words: str, least: int = 1, acceptance: str = "operator") -> tuple[int, str]:
        text = SITE.format(folder=tmp_path, key=PUBLISHER_HEX, least=least, acceptance=acceptance)
        (tmp_path / "site.toml").write_text(text)
        monkeypatch.setenv("COLUMNS", "160")
        command = ["fl-agent", "candidates", *words, "--config", str(tmp_path / "site.toml")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out + shown.err

    return run


@pytest.fixture
def settings(tmp_path: Path):
    """A site with patients, whose active model 2 finds the ill, and two candidates, of which 4 finds the healthy."""
    found = consortium.site(tmp_path)
    with consortium.opened(found) as database:
        consortium.five_patients(found, database)
    made = [consortium.publish(tmp_path / "made", version, slope) for version, slope in (("2", 1), ("3", 2), ("4", -1))]
    site_models.install(found, made[0])
    site_models.activate(found, "2")
    return found


def test_from_received_to_active_and_back(run: Command, settings, tmp_path: Path) -> None:
    assert run("receive", str(tmp_path / "made" / "3"))[0] == 0
    status, shown = run("list")
    assert status == 0
    assert "received" in shown
    assert json.loads(run("show", "3")[1])["version"] == "3"

    status, shown = run("evaluate", "3")
    assert status == 0
    assert "+0.000 (+0.000 to +0.000)" in shown
    assert "3 ill and 1 healthy patients were compared" in shown
    assert "stay at this site; nothing is published" in shown
    assert "rules would accept it" in shown

    status, shown = run("accept", "3")
    assert (status, "--operator" in shown) == (ConfigError.exit_status, True)
    assert run("accept", "3", "--operator", "Dr. A")[0] == 0
    status, shown = run("activate", "3")
    assert "3 answers from the next study on (epsilon 1, delta 0.0001 per patient)" in shown
    assert site_models.version_in_use(settings) == "3"
    assert "2 answers again" in run("rollback")[1]
    assert site_models.version_in_use(settings) == "2"


def test_by_policy_the_better_is_accepted_and_the_worse_refused(run: Command, settings, tmp_path: Path) -> None:
    for version in ("3", "4"):
        run("receive", str(tmp_path / "made" / version))
    status, shown = run("accept", "4", acceptance="policy")
    assert status == Refused.exit_status
    assert "Against it: pneumonia AUC may be 1.000 lower (95 %)" in shown
    status, shown = run("accept", "3", acceptance="policy", least=3)
    assert status == Refused.exit_status
    assert "1 healthy patients were compared, training.handover.minimal_patients is 3" in shown
    assert run("accept", "3", acceptance="policy")[0] == 0
    assert run("activate", "4", acceptance="policy")[0] == Refused.exit_status
    assert run("activate", "3", acceptance="policy")[0] == 0


def test_a_candidate_that_was_altered_is_listed_as_such(run: Command, settings, tmp_path: Path) -> None:
    run("receive", str(tmp_path / "made" / "3"))
    signature = settings.site.state_dir / "candidates" / "3" / "signature"
    signature.write_text(signature.read_text().replace("0", "1"))
    status, shown = run("list")
    assert status == 0
    assert "unknown-publisher" in shown or "model-signature" in shown
