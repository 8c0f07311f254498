"""A consortium on one machine by the README's commands alone: provisioned, started, trained, handed over, stopped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dicom_node.launch import free_port
from fl_agent.courier.nvflare import local
from fl_agent.trial import owners, processes
from secure_infer.models import ModelStore

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
#: Fewer than the README's, who only cost time here.
PATIENTS = 6


def commands() -> str:
    """The README's lines, with this test's interpreter, a free port and few patients."""
    section = (ROOT / "README.md").read_text().partition("\n## A consortium of hospitals\n")[2]
    lines = section.partition("```sh\n")[2].partition("```")[0]
    assert "consortium start" in lines
    lines = lines.replace(".venv/bin/", f"{PROGRAMS}/").replace(" orthanc_config/", f" {ROOT}/orthanc_config/")
    port = f"-e 's/^#port = 8002/port = {free_port()}/' -e "
    lines, count = re.subn(r"^(sed )(?=.* > consortium.toml$)", rf"\1{port}", lines, flags=re.MULTILINE)
    assert count == 1
    return lines.replace("furnish --kits kits", f"furnish --kits kits --patients {PATIENTS}")


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as place:  # a socket's path is short
        kits = Path(place) / "kits"
        yield Path(place)
        if kits.is_dir():
            processes.stop(kits)


def test_the_readmes_commands_bring_three_hospitals_to_a_model_that_one_of_them_answers_with(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-eu"],
        input=commands(),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    kits = folder / "kits"
    north = tomllib.loads(owners.config(kits, "north").read_text())
    store = ModelStore(owners.folder(kits, "coordinator") / "models", north["inference"]["trusted_publishers"])
    (version,) = store.versions()
    assert store.card(version).privacy.epsilon <= 3.0
    models = Path(north["site"]["state_dir"]) / "models"
    assert ModelStore(models, north["inference"]["trusted_publishers"]).active() == version
    assert f"{version} answers from the next study on" in done.stdout
    assert (folder / "run.html").stat().st_size > 10_000
    assert done.stdout.count("reached") == 3
    # It ended by its own commands, and not by this test's end.
    assert set(local.running(kits).values()) == {None}
    assert {agent.pid for agent in processes.agents(kits).values()} == {None}
