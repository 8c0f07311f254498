"""Accuracy of what hospitals learn together, beside one pooled training set and beside each hospital alone.

Run: ``python -m tests.bench.accuracy --json FILE``, with `PNEUMONIA_DATA` naming the folder that holds kermany224. Each
cell is trained once for each seed, which draws anew which patients are in which of three uneven hospitals; noise is
never seeded. Hospitals are agents with ledgers of their own, and sums are secure ones, all in one process. The recipe
is `fl_agent.head`'s; `accuracy.md` says what was tried, and which recipes these test images have seen before. Cells,
with `_low` and `_high` for each figure: `central_nodp`, `central_eps8`, `_eps3`, `_eps1`; `fed_nodp`, `fed_dist_eps*`
(noise summed over hospitals), `fed_site_eps*` (each hospital's own); `local_site1_nodp`, `local_site1_eps*` and so on,
of the largest hospital to the smallest. Probabilities are the head's own, without a published model's calibration.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dicom_node.core import logs
from dicom_node.core.training_settings import PrivacySettings
from fl_agent import head
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.server import published
from fl_agent.learning.site import Examples
from fl_agent.randomness import SecureSource
from fl_agent.simulate.federation import Federation
from fl_agent.train import Recipe, descend, patient_rows
from fl_agent.trainset import Films, pooled_features, read_manifest
from secure_infer.models import Weights
from tests.bench import figures, scores

#: Of the patients, in each hospital.
SHARES = (0.55, 0.3, 0.15)
EPSILONS = (8, 3, 1)
DELTA = 1e-4
#: Stand for no privacy: noise too small to change a digit of any figure, and what that costs.
NO_NOISE, NO_BUDGET = 1e-3, 1e9
Mode = Literal["site", "distributed"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Some images and what the public trunk says of them, shape (images, views, channels)."""

    films: Films
    features: NDArray[np.float32]

    def take(self, patients: NDArray[np.bool_]) -> Part:
        """Keep some patients."""
        chosen = patients[self.films.patients]
        return Part(self.films.take(chosen), self.features[chosen])


def hospitals(part: Part, seed: int) -> list[Part]:
    """Divide the patients by `SHARES`, whatever their class."""
    order = np.random.default_rng(seed).permutation(part.films.count)
    ends = np.rint(np.cumsum(SHARES) * part.films.count).astype(np.int64)
    owner = np.searchsorted(ends, np.argsort(order), side="right")
    return [part.take(owner == number) for number in range(len(SHARES))]


def pooled(part: Part, epsilon: float | None, recipe: Recipe) -> Weights:
    """Train on one set of patients, as `fl-agent train` does; None: without noise."""
    if epsilon is not None:
        budget = (float(epsilon), DELTA)
        return head.train_head(part.features, part.films, budget, SecureSource(), lambda *_: None, recipe)[0]
    centre = head.patient_means(part.features, part.films.patients).mean(0)
    rows = patient_rows(head.centred(part.features, centre), part.films.labels, part.films.patients)
    module = head.linear_head(part.features.shape[2])
    learned = descend(module, rows, recipe, NO_NOISE, SecureSource())["weight"]
    return head.folded(learned.double().numpy(), centre)


def federated(
    consortium: Federation, channels: int, version: str, mode: Mode, epsilon: float | None, recipe: Recipe
) -> Weights:
    """Train by secure sums between agents and a coordinator; None: without noise that matters."""
    plan = propose(
        version,
        consortium.members,
        Features(head.SETUP, head.VIEWS, channels),
        Budget(float(epsilon or NO_BUDGET), DELTA, mode),
        default_descent(recipe.steps),
        centre_noise=head.MEAN_NOISE if epsilon else NO_NOISE,
        metrics_weight=0.0,
    )
    return published(plan, consortium.run(plan))


def cells(
    part: Part, seed: int, epsilons: Sequence[int] = EPSILONS, recipe: Recipe = head.RECIPE
) -> Iterator[tuple[str, Weights]]:
    """Train every cell for one division into hospitals."""
    parts, channels = hospitals(part, seed), part.features.shape[2]
    sites = {
        f"site{number}": Examples(one.features, one.films.labels, one.films.patients)
        for number, one in enumerate(parts, start=1)
    }
    budgets: list[tuple[str, int | None]] = [("nodp", None), *((f"eps{one}", one) for one in epsilons)]
    # What all of it costs together is beyond every sensible limit: the patients are public, and each cell stands alone.
    limit = PrivacySettings(epsilon=10 * NO_BUDGET, delta=DELTA)
    with TemporaryDirectory() as folder, Federation(Path(folder), sites, limit) as consortium:
        for name, epsilon in budgets:
            yield f"central_{name}", pooled(part, epsilon, recipe)
            for number, alone in enumerate(parts, start=1):
                yield f"local_site{number}_{name}", pooled(alone, epsilon, recipe)
            if epsilon is None:
                yield "fed_nodp", federated(consortium, channels, "0.1", "distributed", None, recipe)
            else:
                yield (
                    f"fed_dist_{name}",
                    federated(consortium, channels, f"{epsilon}.1", "distributed", epsilon, recipe),
                )
                yield f"fed_site_{name}", federated(consortium, channels, f"{epsilon}.2", "site", epsilon, recipe)


def logits(weights: Weights, part: Part) -> Array:
    """Evaluate the images as they are, after the rounding to float32 with which a model is published."""
    matrix, bias = (weights[name].astype(np.float32).astype(np.float64) for name in ("head.weight", "head.bias"))
    found: Array = part.features[:, 0] @ matrix.T + bias
    return found


def run(
    training: Part,
    test: Part,
    seeds: int,
    *,
    epsilons: Sequence[int] = EPSILONS,
    recipe: Recipe = head.RECIPE,
    replicates: int = 1000,
) -> dict[str, float]:
    """Train every cell for every seed and look at the test images once."""
    said: dict[str, list[Array]] = {}
    for seed in range(seeds):
        for name, weights in cells(training, seed, epsilons, recipe):
            said.setdefault(name, []).append(logits(weights, test))
            print(time.strftime("%H:%M:%S"), "seed", seed, name, flush=True)
    found: dict[str, float] = {"seeds": seeds, "training_patients": training.films.count, "delta": DELTA}
    for name, several in said.items():
        measured = scores.intervals(several, test.films.labels, test.films.patients, replicates=replicates)
        found |= scores.keyed(name, measured)
    return found


def read(data: Path, cache: Path) -> tuple[Part, Part]:
    """Read training and test images and pass them through the trunk, once for every cache."""
    trunk, folder = head.default_trunk(), data / "kermany224"
    parts = []
    for split, views in (("train", head.VIEWS), ("test", ("plain",))):
        films = read_manifest(folder, split)
        print(f"features of {len(films.files)} {split} images", flush=True)
        parts.append(Part(films, pooled_features(folder, films, trunk, cache, lambda done, of: None, views)))
    return parts[0], parts[1]


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Path]:
    """Read the command line of a bench that trains on features; its arguments, and the folder that holds kermany224."""
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("feature-cache"), help="folder of the trunk's features")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("bench", "warning")
    data = os.environ.get("PNEUMONIA_DATA")
    if not data:
        parser.error("PNEUMONIA_DATA must name the folder that holds kermany224")
    return arguments, Path(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments, data = begin(parser)
    training, test = read(data, arguments.cache)
    figures.write(arguments.json, run(training, test, arguments.seeds), {})


if __name__ == "__main__":
    main()
