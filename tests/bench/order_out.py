"""Accuracy of a recipe on training films from before, between and after those that it learned from.

Run: ``python -m tests.bench.order_out --json FILE``, with `PNEUMONIA_DATA` naming the folder that holds kermany224. The
data set's numbers follow the order of collection, and its test films carry the lowest ones: folds drawn at random could
flatter a recipe. Here each of the four series of numbers is cut into blocks, and whole blocks are held out.
`accuracy.md` has the rule by which recipes are chosen with this, and what it found; test films are never read. Keys:
`blockN_auc_pneumonia`, `blockN_auc_bacterial_viral` (1 is lowest), means over draws; both as means over all blocks,
without a prefix; `detectability`, what the rule compares; and the first two for random blocks, where asked for.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from fl_agent import head
from fl_agent.figures import auc
from fl_agent.train import Recipe
from fl_agent.trainset import VIEWS, Films, pooled_features, read_manifest
from secure_infer.card import Regions, Side, TrunkName
from secure_infer.network import Trunk
from tests.bench import figures
from tests.bench.accuracy import Array, Part, begin, logits, pooled

#: Of each series; 17 % of its patients are in one.
BLOCKS = 6
NUMBERS = range(1, BLOCKS + 1)
#: `train/normal/IM-0115-0001.jpeg`, `train/normal/NORMAL2-IM-0383-0001.jpeg`, `train/virus/person1_virus_6.jpeg`.
NUMBERED = re.compile(r"(?P<series>\w+/(?:NORMAL2-)?(?:IM-|person))(?P<number>\d+)[-_]")
Blocks = NDArray[np.int64]
#: Trains on some images and says the logits, shape (images, 3), of others.
Learn = Callable[[Part, Part], Array]


def ordered(films: Films) -> Blocks:
    """Number the block of each patient, 1 (the lowest numbers) to `BLOCKS`, shape (patients,)."""
    series: dict[str, dict[int, int]] = {}
    for file, patient in zip(films.files, films.patients.tolist(), strict=True):
        found = NUMBERED.search(file)
        if found is None:
            raise ValueError(f"{file} carries no number of a patient")
        series.setdefault(found["series"], {})[patient] = int(found["number"])
    blocks = np.zeros(films.count, dtype=np.int64)
    for numbers in series.values():
        patients = sorted(numbers, key=numbers.__getitem__)
        blocks[patients] = 1 + np.arange(len(patients)) * BLOCKS // len(patients)
    return blocks


def drawn(films: Films, seed: int = 0) -> Blocks:
    """Number blocks of the same sizes, of each class's patients in random order: what the order is compared with."""
    blocks, rng = np.zeros(films.count, dtype=np.int64), np.random.default_rng(seed)
    for label in range(3):
        patients = rng.permutation(np.flatnonzero(films.patient_labels == label))
        blocks[patients] = 1 + np.arange(len(patients)) * BLOCKS // len(patients)
    return blocks


def held_out(part: Part, out: NDArray[np.bool_], learn: Learn, draws: int) -> tuple[float, float]:
    """Train without some patients and evaluate on them; AUC of pneumonia and of bacterial against viral."""
    training, rest = part.take(~out), part.take(out)
    ill, bacterial = rest.films.labels > 0, rest.films.labels == 1
    found = []
    for _ in range(draws):
        said = learn(training, rest)
        pneumonia = np.logaddexp(said[:, 1], said[:, 2]) - said[:, 0]
        found.append((auc(pneumonia, ill), auc((said[:, 1] - said[:, 2])[ill], bacterial[ill])))
    first, second = np.mean(found, axis=0).tolist()
    return first, second


def detectability(*areas: float) -> float:
    """Sum d' over questions, where two normal distributions of equal width give AUC = Phi(d' / sqrt 2).

    (Simpson & Fitter 1973, Psychol. Bull. 80:481). A difference near 1 counts for more than the same one near 1/2.
    """
    return sum(2**0.5 * NormalDist().inv_cdf(area) for area in areas)


def heads(recipe: Recipe = head.RECIPE, epsilon: float | None = 3.0) -> Learn:
    """Learn a head on features; None: without noise."""
    return lambda training, rest: logits(pooled(training, epsilon, recipe), rest)


def measure(part: Part, learn: Learn, *, draws: int = 10, random: bool = False) -> dict[str, float]:
    """Hold out each block in turn, and random ones besides where asked for."""
    found: dict[str, float] = {}

    def several(blocks: Blocks, prefix: str, parts: str | None) -> None:
        said = [held_out(part, blocks == number, learn, draws) for number in NUMBERS]
        for place, name in enumerate(("auc_pneumonia", "auc_bacterial_viral")):
            if parts:
                found.update({f"{parts}{number}_{name}": one[place] for number, one in zip(NUMBERS, said, strict=True)})
            found[prefix + name] = float(np.mean([one[place] for one in said]))

    several(ordered(part.films), "", "block")
    # Without noise a question may be answered without any error, which no finite d' expresses.
    areas = found["auc_pneumonia"], found["auc_bacterial_viral"]
    if all(0 < area < 1 for area in areas):
        found["detectability"] = detectability(*areas)
    if random:
        several(drawn(part.films), "random_", None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", default=head.SETUP.name, choices=get_args(TrunkName))
    parser.add_argument("--taps", nargs="+", default=list(head.SETUP.taps))
    parser.add_argument("--steps", type=int, default=head.RECIPE.steps)
    parser.add_argument("--rate", type=float, default=head.RECIPE.learning_rate)
    parser.add_argument("--clip", type=float, default=head.RECIPE.clip)
    parser.add_argument("--draws", type=int, default=10, help="trainings for each block held out")
    parser.add_argument("--side", type=int, default=head.SETUP.side, choices=get_args(Side))
    parser.add_argument("--regions", type=int, default=head.SETUP.regions, choices=get_args(Regions))
    parser.add_argument("--views", nargs="+", default=list(head.VIEWS), choices=VIEWS)
    parser.add_argument("--features", type=Path, help="others for the same films: an array (images, views, channels)")
    parser.add_argument("--random", action="store_true", help="hold out random blocks as well")
    parser.add_argument("--no-noise", action="store_true", help="without privacy, as a bound")
    arguments, data = begin(parser)
    recipe = Recipe(arguments.steps, 1.0, arguments.clip, arguments.rate, head.RECIPE.momentum)
    folder = data / "kermany224"
    films = read_manifest(folder, "train")
    if arguments.features:
        features = np.load(arguments.features, allow_pickle=False)
    else:
        trunk = Trunk(arguments.taps, name=arguments.trunk, side=arguments.side, regions=arguments.regions)
        views = tuple(arguments.views)
        features = pooled_features(folder, films, trunk, arguments.cache, lambda done, of: None, views)
    epsilon, draws = (None, 1) if arguments.no_noise else (3.0, arguments.draws)
    found = measure(Part(films, features), heads(recipe, epsilon), draws=draws, random=arguments.random)
    figures.write(arguments.json, found, {})


if __name__ == "__main__":
    main()
