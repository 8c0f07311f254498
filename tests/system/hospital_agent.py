"""A hospital's agent as a process of its own: its rows are prepared or drawn, its updates carry a canary.

As a program, ``python -m tests.system.hospital_agent FILE`` is the agent that the JSON in FILE describes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dicom_node.core import logs, loops
from dicom_node.core.database import Database
from dicom_node.core.training_settings import FederationSettings, PrivacySettings
from fl_agent.agent.agent import Agent
from fl_agent.agent.rules import Rules
from fl_agent.agent.runs import Runs
from fl_agent.courier import unix
from fl_agent.learning.site import Examples
from fl_agent.ledger.ledger import Ledger
from fl_agent.secagg import client
from fl_agent.secagg.rounds import RoundLedger
from secure_infer.models import signing_key

log = logs.get(__name__)


def drawn(patients: int, channels: int, seed: int) -> Examples:
    """Patients of one image each, whose class shows in three channels; norm of each vector 1."""
    generator = np.random.default_rng(seed)
    labels = np.arange(patients) % 3
    features = generator.normal(0, 0.3, (patients, 2, channels))
    features[np.arange(patients), :, labels] += 8.0
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    return Examples(features.astype(np.float32), labels, np.arange(patients))


def canary(name: str) -> NDArray[np.int32]:
    """Twelve small numbers of a hospital, as good as random."""
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:24], dtype="<i2").astype(np.int32) // 64


def plant(name: str) -> None:
    """Put the canary into every vector of this process after the noise and before the masks."""
    add_masks = client.add_masks

    def planted(words: NDArray[np.uint32], plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
        words[:12] = canary(name).view(np.uint32)
        add_masks(words, plus, minus)

    client.add_masks = planted


def rows(given: dict[str, Any]) -> Examples:
    """The rows of a file, where one is named; else drawn ones."""
    if "rows" not in given:
        return drawn(given["patients"], given["channels"], given["patients"])
    with np.load(given["rows"]) as kept:
        return Examples(kept["features"], kept["labels"], kept["patients"])


@contextmanager
def serving(file: Path) -> Iterator[None]:
    """Answer as the agent that a JSON file describes."""
    given = json.loads(file.read_text())
    folder = Path(given["folder"])
    database = Database(f"sqlite:///{folder / 'site.sqlite3'}")
    if not database.is_current():
        database.migrate()
    rounds = RoundLedger(folder / "rounds.sqlite3")
    federation = FederationSettings.model_validate(given["federation"])
    privacy = PrivacySettings(epsilon=8.0, delta=1e-3)
    examples = rows(given)
    agent = Agent(
        signing_key(federation.identity_file),
        Rules(federation, privacy),
        rounds,
        Runs(database, Ledger(database, privacy)),
        lambda plan: examples,
    )
    with unix.serve(Path(given["socket"]), agent.handle):
        yield
    rounds.close()
    database.close()


def main(file: str) -> int:
    logs.configure("agent")
    stop = loops.stop_on_signals()
    torch.set_num_threads(1)
    plant(Path(json.loads(Path(file).read_text())["folder"]).name)
    with serving(Path(file)):
        log.info("ready")
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
