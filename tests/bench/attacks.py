"""What attacks learn from training, with its protection and without: audit, gradient inversion, membership inference.

Run: ``python -m tests.bench.attacks --json FILE``; a page with the pictures is written beside it (FILE with .html).

- audit: `..._lower` is the ε that an attacker with canaries refutes at 95 % confidence (Steinke et al. 2023); it must
  stay below the `..._claimed` one, and `..._lower_noise_off`, of the same run without its noise, must be above.
- inversion: structural similarity (1 is the same film) and rank among `inversion_gallery` films, by correlation, of the
  film that is searched for in one hospital's update (Geiping et al. 2020); means over films, medians of ranks.
- membership: how LiRA (Carlini et al. 2022) tells who was in the training of a head on real features.

Films are those of PNEUMONIA_DATA where it is there, else drawn phantoms; the figure `real_films` says which.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicom_node.phantom.drawing import KINDS, draw
from fl_agent.accounting import descent_of, noise_for
from fl_agent.head import BIAS_INPUT, default_trunk, linear_head
from fl_agent.train import Recipe
from fl_agent.trainset import Films, pooled_features, read_image, read_manifest
from tests.bench import figures
from tests.bench.attack_page import Row, page
from tests.fl_agent.attacks import membership, updates
from tests.fl_agent.attacks.audit import audit
from tests.fl_agent.attacks.canaries import Faint, descent_scores, flip, head_scores
from tests.fl_agent.attacks.inversion import (
    Dense,
    Picture,
    SmallNetwork,
    gradient,
    invert,
    rank,
    read_off,
    shrunk,
    similarity,
    stretched,
)
from tests.fl_agent.attacks.sums import NAMES, claimed, plan, sums_scores
from tests.fl_agent.secagg.consortium import folder

CONFIDENCE = 0.95
DELTA = 1e-6
CLAIMS = (1.0, 3.0, 8.0)
#: Without noise all guesses are right; so many are needed for a bound above the claim.
CANARIES = {1.0: 4000, 3.0: 4000, 8.0: 20_000}
FULL = Recipe(steps=8, sampling_rate=1.0, clip=1.0, learning_rate=1.0, momentum=0.0, averaged=0.0)
#: So often that no canary is never drawn, which without noise would be a wrong guess: 0.6 ** 32 is 8e-8.
SAMPLED = Recipe(steps=32, sampling_rate=0.4, clip=1.0, learning_rate=1.0, momentum=0.0, averaged=0.0)
#: Of one step under epsilon 8 at δ = 1e-5: the least noise that a run could have.
LEAST_NOISE = 0.6
DATA = Path(os.environ.get("PNEUMONIA_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes
    ----------
    canaries : mapping of float to int
        By claim.
    side, steps : int
        Of the films that are searched for, and of the search.
    targets, gallery : int
        Films.
    patients, shadows : int
        Of membership inference.
    """

    canaries: dict[float, int]
    side: int = 48
    steps: int = 600
    targets: int = 5
    gallery: int = 100
    patients: int = 500
    shadows: int = 32


def audits(effort: Effort) -> dict[str, float]:
    """Audit `descend`, in a full batch and with a lottery, the shipped head, and secure sums in mode DISTRIBUTED."""
    found = {"audit_confidence": CONFIDENCE, "audit_delta": DELTA}

    def note(name: str, scores: NDArray[np.float64], coins: NDArray[np.bool_]) -> None:
        found[name] = audit(scores, coins, DELTA, CONFIDENCE).epsilon
        print(name, round(found[name], 3), flush=True)

    for claim, canaries in effort.canaries.items():
        coins, suffix = flip(canaries, 1), f"eps{claim:g}"
        for kind, recipe in (("descent", FULL), ("lottery", SAMPLED)):
            mechanism = noise_for(claim, DELTA, descent_of("head", "all", canaries, recipe))
            found[f"audit_{kind}_{suffix}_claimed"] = claim
            for factor, name in ((1.0, "lower"), (0.5, "lower_noise_half"), (0.0, "lower_noise_off")):
                scores = descent_scores(coins, recipe, mechanism.noise_multiplier, Faint(factor), closed=True)
                note(f"audit_{kind}_{suffix}_{name}", scores, coins)
        found[f"audit_head_{suffix}_claimed"] = claim
        for factor, name in ((1.0, "lower"), (0.5, "lower_noise_half"), (0.0, "lower_noise_off")):
            note(f"audit_head_{suffix}_{name}", head_scores(coins, 300, (claim, DELTA), Faint(factor)), coins)
        agreed = plan(canaries, claim, DELTA, 2)
        found[f"audit_sums_{suffix}_claimed"] = claimed(agreed)
        for quiet, name in ((("colluding",), "lower"), (NAMES, "lower_noise_off")):
            with folder() as place:
                note(f"audit_sums_{suffix}_{name}", sums_scores(agreed, coins, Path(place), quiet), coins)
    return found


def gallery(effort: Effort) -> tuple[NDArray[np.float32], Films | None]:
    """Films of different patients, the first of which are searched for."""
    if not (DATA / "kermany224" / "manifest.csv").is_file():
        drawn = [draw(seed, KINDS[seed % 3], (256, 256)) for seed in range(effort.gallery)]
        return np.stack([shrunk(one.astype(np.float32) / 255, effort.side) for one in drawn]), None
    known = read_manifest(DATA / "kermany224", "train")
    films = some_patients(known, effort.gallery, 0)
    seen = [read_image(DATA / "kermany224", films, number) for number in range(effort.gallery)]
    return np.stack([shrunk(one, effort.side) for one in seen]), films


def some_patients(known: Films, count: int, seed: int) -> Films:
    """One image of each of some patients."""
    _, first = np.unique(known.patients, return_index=True)
    chosen = np.zeros(len(known.files), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(first)[:count]] = True
    return known.take(chosen)


def ways(network: nn.Module, images: Tensor, labels: Tensor, place: Path) -> Iterator[tuple[str, list[Tensor]]]:
    """The same film's update in each form: plain, clipped alone, with noise (mode SITE), and masked."""
    plain = gradient(network, images, labels)
    yield "plain", plain
    yield "clipped", updates.private(network, images, labels, 1e-9)
    yield "noised", updates.private(network, images, labels, LEAST_NOISE)
    yield "masked", updates.masked(plain, place)


def inversions(effort: Effort) -> tuple[dict[str, float], list[Row]]:
    """Search for films in updates; returns figures and the pictures."""
    films, known = gallery(effort)
    side, found, rows = effort.side, {}, []
    network, dense = SmallNetwork(side), Dense(side)
    measured: dict[str, list[tuple[float, int]]] = {}

    def note(way: str, picture: Picture, number: int) -> Picture:
        measured.setdefault(way, []).append((similarity(picture, films[number]), rank(picture, number, films)))
        return picture

    for number in range(effort.targets):
        label = torch.tensor([number % 3])
        image = torch.from_numpy(films[[number]])[:, None]
        pictures = {"film": films[number]}
        with folder() as place:
            for way, seen in ways(network, image, label, Path(place) / "search"):
                pictures[way] = note(
                    way, invert(network, seen, label, side, steps=effort.steps, seed=number)[0], number
                )
            for way, seen in ways(dense, image, label, Path(place) / "read"):
                pictures[f"{way}_first_layer"] = note(f"{way}_first_layer", stretched(read_off(seen, side)), number)
        four = (number + np.arange(4)) % effort.targets
        labels = torch.from_numpy(four % 3)
        seen = gradient(network, torch.from_numpy(films[four])[:, None], labels)
        several = invert(network, seen, labels, side, steps=effort.steps)
        pictures["plain_of_four"] = note(
            "plain_of_four", max(several, key=lambda p: similarity(p, films[number])), number
        )
        rows.append(Row(pictures, {way: values[-1] for way, values in measured.items()}))
        print(
            "film", number + 1, {way: (round(one[-1][0], 2), one[-1][1]) for way, one in measured.items()}, flush=True
        )
    for way, values in measured.items():
        found[f"inversion_{way}_similarity"] = float(np.mean([one for one, _ in values]))
        found[f"inversion_{way}_rank"] = float(np.median([one for _, one in values]))
    found |= {
        "inversion_gallery": len(films),
        "inversion_films": effort.targets,
        "real_films": float(known is not None),
    }
    return found, rows


def features(effort: Effort, cache: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
    """Features of the public trunk, of one image of each of some patients; None without the data."""
    if not (DATA / "kermany224" / "manifest.csv").is_file():
        return None
    films = some_patients(read_manifest(DATA / "kermany224", "train"), effort.patients, 1)
    pooled = pooled_features(DATA / "kermany224", films, default_trunk(), cache, lambda done, of: None, ("plain",))
    return pooled[:, 0], films.labels


def heads(effort: Effort, cache: Path) -> dict[str, float]:
    """Attack heads on real features: who was in the training, and whose gradient it is."""
    known = features(effort, cache)
    if known is None:
        return {}
    seen, labels = known
    found: dict[str, float] = {"membership_patients": len(labels), "membership_shadows": effort.shadows}
    delta = 1e-4
    for name, train in [("plain", membership.plain())] + [
        (f"eps{claim:g}", membership.private(claim, delta)) for claim in CLAIMS
    ]:
        told = membership.attack(seen, labels, train, effort.shadows, delta)
        found |= {
            f"membership_{name}_auc": told.auc,
            f"membership_{name}_caught_at_1_percent": told.caught,
            f"membership_{name}_lower": told.epsilon,
        }
        print("membership", name, told, flush=True)
    ranks: dict[str, list[int]] = {}
    apart = seen - seen.mean(0)
    for number in range(min(20, len(labels))):
        inputs = torch.from_numpy(np.append(seen[number], np.float32(BIAS_INPUT))[None])
        label = torch.tensor([int(labels[number])])
        with folder() as place:
            for way, update in ways(linear_head(seen.shape[1]), inputs, label, Path(place)):
                row = -update[0][int(label)].numpy()
                # The constant input gives the scale: features are the rest of the row over it.
                guess = row[:-1] / row[-1] * BIAS_INPUT - seen.mean(0)
                likeness = apart @ guess / np.linalg.norm(apart, axis=1)
                ranks.setdefault(way, []).append(int((likeness > likeness[number]).sum()) + 1)
    found |= {f"inversion_head_{way}_rank": float(np.median(one)) for way, one in ranks.items()}
    return found | {"inversion_head_gallery": len(labels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of features; they hold patient data as much as films do")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    effort = Effort(CANARIES)
    with TemporaryDirectory() as temporary:
        found, rows = inversions(effort)
        found |= heads(effort, arguments.cache or Path(temporary))
    found |= audits(effort)
    figures.write(arguments.json, found, {})
    arguments.json.with_suffix(".html").write_text(page(found, rows))


if __name__ == "__main__":
    main()
