"""The demonstration, as a stranger runs it."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from PIL import Image
from rich.console import Console

from dicom_node import phantom
from dicom_node.demo import pacs, show


def test_the_command_ends_well_and_leaves_one_report_for_each_study(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "dicom_node", "demo", "--out", str(tmp_path / "out"), "--studies", "2"]
    run = subprocess.run([*command, "--json", str(result)], capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr
    written = json.loads(result.read_text())
    assert (written["pacs"], written["engine"], len(written["studies"])) == ("Orthanc", "dealt-2pc", 2)
    for number, one in enumerate(written["studies"], start=1):
        assert one["answer"] in ("present", "absent", "undetermined")
        assert (len(one["reports"]), len(one["companions"])) == (1, 1)
        report = pydicom.dcmread(one["reports"][0])
        assert report.StudyInstanceUID == phantom.Study.numbered(number, key="demo").study_uid
        checked = subprocess.run(["dciodvfy", one["reports"][0]], capture_output=True, text=True, check=False)
        assert "Error" not in checked.stdout + checked.stderr
    assert "0 errors" in run.stdout
    assert "unverified until a physician verifies it" in run.stdout


def test_a_held_demonstration_that_is_ended_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dicom_node", "demo", "--out", str(tmp_path / "out"), "--studies", "0", "--hold"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert any("Ctrl-C ends everything" in line for line in held.stdout)
        assert len(processes_with(str(tmp_path))) == 6  # itself, dealer, party, serve, worker, web
        held.terminate()
        assert held.wait(30) == 128 + signal.SIGTERM
    assert processes_with(str(tmp_path)) == []


def processes_with(argument: str) -> list[str]:
    """Command lines of the running processes that name this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended between the two looks
            line = path.read_bytes().decode(errors="replace")
            found += [line] if argument in line else []
    return found


def test_without_orthanc_our_own_scp_takes_the_reports_and_real_files_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacs, "find_orthanc", lambda: None)
    image, dicom, result = tmp_path / "film.png", tmp_path / "hip.dcm", tmp_path / "result.json"
    Image.fromarray(phantom.draw(7, "diffuse", (300, 400))).save(image)
    hip = phantom.dataset(phantom.draw(8, "clear", (300, 400)), study=phantom.Study("hip"))
    hip.BodyPartExamined = "HIP"
    hip.save_as(dicom, enforce_file_format=True)
    out = io.StringIO()
    console = Console(file=out, width=160)
    show.show(tmp_path / "out", images=[image], dicoms=[dicom], phantoms=0, json_file=result, hold=False, out=console)
    film, refused = json.loads(result.read_text())["studies"]
    assert (len(film["reports"]), len(film["companions"])) == (1, 1)
    assert refused["answer"] == "refused"
    assert "BodyPartExamined" in refused["reason"]
    assert "Orthanc is not installed" in out.getvalue()


def test_a_second_run_replaces_the_first_and_leaves_other_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "reports").mkdir(parents=True)
    (folder / "reports" / "old.dcm").write_bytes(b"old")
    (folder / "mine.txt").write_text("mine")
    console = Console(file=io.StringIO())
    show.show(folder, images=[], dicoms=[], phantoms=1, json_file=None, hold=False, out=console)
    assert [path.name for path in (folder / "reports").iterdir() if path.name == "old.dcm"] == []
    assert (folder / "mine.txt").read_text() == "mine"
