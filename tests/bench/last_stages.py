"""Accuracy of privately trained last stages of the trunk, measured as `order_out` measures a head.

Run: ``python -m tests.bench.last_stages --json FILE``, with `PNEUMONIA_DATA` naming the folder that holds kermany224.
The stages behind `--cut` start from the public weights and descend with the head, patient by patient, as in `fl-agent
train --network efficientnet-lite0`; images are not mirrored here, so that those before the cut are run once. The keys
are `order_out`'s. Test films are never read.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np
import torch

from fl_agent import deep
from fl_agent.accounting import descent_of, noise_for
from fl_agent.randomness import SecureSource
from fl_agent.train import Recipe, descend, patient_rows
from fl_agent.trainset import read_manifest
from tests.bench import figures
from tests.bench.accuracy import DELTA, NO_NOISE, Array, Part, begin
from tests.bench.order_out import Learn, measure

NETWORK = "efficientnet-lite0"
PLAN = deep.PLANS[NETWORK]
#: Images that pass a network at once where nothing is trained.
AT_ONCE = 64


def stages(cut: str, recipe: Recipe, epsilon: float | None = 3.0) -> Learn:
    """Learn the stages behind a cut from what leaves it; None: without noise."""

    def learn(training: Part, rest: Part) -> Array:
        network, films = deep.make(NETWORK, cut).network, training.films
        noise = NO_NOISE
        if epsilon is not None:
            descent = descent_of("network", "training patients", films.count, recipe)
            noise = noise_for(epsilon, DELTA, descent).noise_multiplier
        rows = patient_rows(training.features, films.labels, films.patients)
        found = descend(network, rows, recipe, noise, SecureSource(), at_once=PLAN.at_once)
        network.load_state_dict(found)
        network.eval()
        with torch.no_grad():
            said = [network(torch.from_numpy(rest.features[a:b, 0])) for a, b in _batches(len(rest.features))]
        return torch.cat(said).double().numpy()

    return learn


def _batches(count: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, count, AT_ONCE), count]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    recipe = PLAN.recipe
    parser.add_argument("--cut", default="block15", help="the last public stage")
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument("--sampling", type=float, default=recipe.sampling_rate)
    parser.add_argument("--clip", type=float, default=recipe.clip)
    parser.add_argument("--rate", type=float, default=recipe.learning_rate)
    parser.add_argument("--draws", type=int, default=1, help="trainings for each block held out")
    parser.add_argument("--no-noise", action="store_true", help="without privacy, as a bound")
    arguments, data = begin(parser)
    folder = data / "kermany224"
    films = read_manifest(folder, "train")
    images = deep.read_images(folder, films, lambda done, of: None)
    public = deep.make(NETWORK, arguments.cut).public
    found = [public.features_of(images[a:b].astype(np.float32) / 255.0).numpy() for a, b in _batches(len(images))]
    recipe = Recipe(arguments.steps, arguments.sampling, arguments.clip, arguments.rate, recipe.momentum)
    learn = stages(arguments.cut, recipe, None if arguments.no_noise else 3.0)
    figures.write(
        arguments.json, measure(Part(films, np.concatenate(found)[:, None]), learn, draws=arguments.draws), {}
    )


if __name__ == "__main__":
    main()
