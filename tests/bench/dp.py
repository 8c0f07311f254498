"""What privacy costs a training step: DP-SGD against plain SGD on the same rows, time and peak memory.

Run: ``python -m tests.bench.dp --json FILE``. `dp_step_ratio` is of the default network, the linear head on the public
trunk's cached features: all patients of a training set like Kermany's in each step, clipping by patient, noise from the
secure source. `small_cnn_step_ratio` is of a whole private network, by a gradient for each image. Times are processor
seconds of one thread, the median over steps after the first; both kinds run in turn. `_memory_peak_mb` is by how much a
descent in a process of its own raises the process's peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_agent import deep, head
from fl_agent.randomness import SecureSource
from fl_agent.train import Recipe, Rows, descend, patient_loss, patient_rows
from tests.bench import figures

#: Patients and the most images of one of them; the sizes of Kermany's training part.
PATIENTS, LARGEST = 3100, 30
#: Patients of the private network's training set, and how many a step draws.
CNN_PATIENTS, CNN_DRAWN = 256, 64
#: Called after each step, as by `descend`.
Done = Callable[[int, int], None]
Descent = Callable[[int, Done], None]


def head_rows(patients: int, channels: int) -> Rows:
    """Make rows shaped like the head's: 1.4 images for each patient, each seen as often as the head sees it."""
    rng = np.random.default_rng(1)
    counts = np.minimum(rng.geometric(0.7, patients), LARGEST)
    owner = np.repeat(np.arange(patients), counts)
    inputs = rng.normal(size=(len(owner), len(head.VIEWS), channels)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=2, keepdims=True)
    return patient_rows(inputs, (owner % 3).astype(np.int64), owner)


def plain(
    module: nn.Module, rows: Rows, recipe: Recipe, prepare: Callable[[torch.Tensor], torch.Tensor], done: Done
) -> None:
    """Descend without privacy, as one would write it."""
    optimizer = torch.optim.SGD(module.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)
    rng = np.random.default_rng(1)
    for step in range(recipe.steps):
        chosen: slice | torch.Tensor = slice(None)
        if recipe.sampling_rate < 1:
            chosen = torch.from_numpy(np.flatnonzero(rng.random(rows.count) < recipe.sampling_rate))
        optimizer.zero_grad()
        logits = module(prepare(rows.inputs[chosen])).flatten(1)
        loss = patient_loss(logits, rows.labels[chosen], rows.weights[chosen]) / (recipe.sampling_rate * rows.count)
        loss.backward()
        optimizer.step()
        done(step + 1, recipe.steps)


def of_head(patients: int = PATIENTS) -> tuple[Descent, Descent]:
    """Return plain and private descents of the default network."""
    rows = head_rows(patients, head.default_trunk().channels + 1)
    features = rows.inputs.shape[1]

    def recipe(steps: int) -> Recipe:
        return replace(head.RECIPE, steps=steps)

    def private(steps: int, done: Done) -> None:
        descend(nn.Linear(features, 3, bias=False), rows, recipe(steps), 5.0, SecureSource(), done)

    def open_(steps: int, done: Done) -> None:
        plain(nn.Linear(features, 3, bias=False), rows, recipe(steps), lambda inputs: inputs, done)

    return open_, private


def of_small_cnn(patients: int = CNN_PATIENTS) -> tuple[Descent, Descent]:
    """Return plain and private descents of a small private network on whole images."""
    made = deep.make("small-cnn")
    plan = deep.PLANS["small-cnn"]
    images = np.random.default_rng(1).integers(0, 256, (patients, 1, 224, 224), dtype=np.uint8)
    rows = patient_rows(images, np.arange(patients, dtype=np.int64) % 3, np.arange(patients, dtype=np.int64))

    def prepare(chosen: torch.Tensor) -> torch.Tensor:
        return made.public.features_of(chosen.numpy().astype(np.float32) / np.float32(255.0))

    def recipe(steps: int) -> Recipe:
        return Recipe(steps, CNN_DRAWN / CNN_PATIENTS, 1.0, 0.01, 0.9)

    def private(steps: int, done: Done) -> None:
        descend(made.network, rows, recipe(steps), 1.0, SecureSource(), done, prepare=prepare, at_once=plan.at_once)

    return lambda steps, done: plain(made.network, rows, recipe(steps), prepare, done), private


NETWORKS = {"dp": (of_head, 40), "small_cnn": (of_small_cnn, 4)}


def step_times(descent: Descent, steps: int) -> list[float]:
    """Processor seconds of each step after the first, which holds what a descent does once."""
    ends: list[float] = []
    descent(steps + 1, lambda step, of: ends.append(time.process_time()))
    return [after - before for before, after in pairwise(ends)]


def measure(name: str, repeats: int, patients: int | None = None, steps: int | None = None) -> dict[str, float]:
    """Time both kinds of step in turn."""
    make, usual = NETWORKS[name]
    both = make() if patients is None else make(patients)
    times: tuple[list[float], ...] = ([], [])
    for _ in range(repeats):
        for kind, descent in enumerate(both):
            times[kind].extend(step_times(descent, steps or usual))
    plain_s, private_s = (float(np.median(one)) for one in times)
    return {f"{name}_plain_step_s": plain_s, f"{name}_step_s": private_s, f"{name}_step_ratio": private_s / plain_s}


def raised_mb(act: Callable[[], object]) -> float:
    """By how much an act raises this process's resident memory at its peak, from where it is now."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; getrusage's outlives even exec
    before = _resident_mb("VmRSS")
    act()
    return _resident_mb("VmHWM") - before


def _resident_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def peak_mb(name: str, kind: int) -> float:
    """What one descent of this kind takes."""
    descent = NETWORKS[name][0]()[kind]
    return raised_mb(lambda: descent(2, lambda step, of: None))


def run(repeats: int) -> dict[str, float]:
    found: dict[str, float] = {"dp_patients": PATIENTS}
    for name in NETWORKS:
        found |= measure(name, repeats)
        for kind, prefix in enumerate(("plain_", "")):
            command = [sys.executable, "-m", "tests.bench.dp", "--peak", name, str(kind)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[f"{name}_{prefix}memory_peak_mb"] = float(json.loads(said))
        print({key: round(value, 4) for key, value in found.items() if key.startswith(name)}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(json.dumps(peak_mb(arguments.peak[0], int(arguments.peak[1]))))
    elif arguments.json:
        figures.write(arguments.json, run(arguments.repeats), {})
    else:
        parser.error("--json FILE is needed")


if __name__ == "__main__":
    main()
