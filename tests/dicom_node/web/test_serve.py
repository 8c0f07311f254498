"""`dicom-node web` as a process: it says when it is ready, answers, and ends well on SIGTERM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from dicom_node.launch import Service

SETTINGS = """
[site]
name = "St Example"
state_dir = "{folder}"
[inference]
engine = "plaintext"
[web]
port = {port}
"""


def command(folder: Path, name: str, port: int) -> list[str]:
    config = folder / f"{name}.toml"
    config.write_text(SETTINGS.format(folder=folder / "state", port=port))
    return [sys.executable, "-m", "dicom_node", "web", "--config", str(config)]


def test_the_service_makes_its_database_answers_and_ends_well_and_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    web = Service("web", command(tmp_path, "web", 0), tmp_path)
    web.start()
    try:
        port = web.wait_ready()["port"]
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
        assert "server" not in answer.headers
        second = subprocess.run(command(tmp_path, "second", port), check=False, capture_output=True, text=True)
        assert second.returncode == 78
        assert "cannot listen on 127.0.0.1" in second.stderr
    finally:
        status = web.stop()
    assert status == 0
    assert [line["event"] for line in web.lines()] == ["ready"]
