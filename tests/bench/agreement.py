"""The 624 test images through whole networks under encryption, beside the same network in floating point.

Run: ``python -m tests.bench.agreement --json FILE --network NAME``. The network is trained first, on class-balanced
images of the training split, WITHOUT differential privacy: only the arithmetic is measured here, such a network is
never published, and `fl-agent train` makes none. The test split is looked at once, after everything was fixed. Every
image takes the whole protocol: in three processes over mutual TLS, or with ``--in-process`` in the three state
machines alone, which is the same arithmetic on the same messages. Inputs made to overflow come last: each must be
answered rightly or refused with a named error.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision.transforms import v2

from dicom_node.core import logs
from dicom_node.core.errors import VeilRayError
from fl_agent.deep import Deep, make
from fl_agent.trainset import Films, read_image, read_manifest, split_patients
from secure_infer.compile import Compiled
from secure_infer.engine import input_of
from secure_infer.public import PublicPart
from tests.bench import figures
from tests.conftest import DATA
from tests.secure_infer.small_model import publish
from tests.secure_infer.small_network import Trio
from tests.system.roles import Roles

Array = NDArray[np.float64]
#: From the private part's input to logits.
Network = Callable[[Array], Array]
#: Training: images (drawn to equal classes), epochs, images at once, largest learning rate.
RECIPES = {
    "small-cnn": (3600, 14, 32, 3e-3),
    "resnet18": (600, 6, 12, 4e-4),
    "resnet18-max": (600, 6, 12, 4e-4),
    "efficientnet-lite0": (1500, 6, 32, 1e-3),
}
SEED = 2018
#: Of every role, seconds: what is measured is no speed, and the machine may have other work.
PATIENCE_S = 60.0


def balanced(films: Films, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw equally many images of each class."""
    drawn = [rng.choice(np.flatnonzero(films.labels == label), count // 3) for label in range(3)]
    return np.concatenate(drawn)


def train(made: Deep, folder: Path, films: Films) -> None:
    """Train a network in place, without differential privacy."""
    count, epochs, at_once, rate = RECIPES[made.name]
    rng = np.random.default_rng(SEED)
    network = made.network.train()
    chosen = balanced(films, count, rng)
    images = {number: read_image(folder, films, number) for number in set(chosen.tolist())}
    augment = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(7, translate=(0.05, 0.05), scale=(0.9, 1.1)),
            v2.ColorJitter(0.2, 0.2),
        ]
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * (len(chosen) // at_once)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(epochs):
        order, total, started = rng.permutation(chosen), 0.0, time.monotonic()
        for batch in order[: len(order) // at_once * at_once].reshape(-1, at_once):
            seen = torch.stack([augment(torch.from_numpy(images[int(one)])[None])[0] for one in batch])
            logits = network(made.public.features_of(seen.numpy()))
            loss = functional.cross_entropy(logits, torch.from_numpy(films.labels[batch]))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * at_once
        spent = time.monotonic() - started
        print(f"{made.name}: epoch {epoch + 1} of {epochs}, loss {total / count:.3f}, {spent:.0f} s", flush=True)


def trained(name: str, folder: Path, films: Films, cache: Path) -> Deep:
    """Load the trained network from the cache, or train it."""
    torch.manual_seed(SEED)
    made, kept = make(name), cache / f"{name}.safetensors"
    if not kept.is_file():
        train(made, folder, films)
        cache.mkdir(parents=True, exist_ok=True)
        save_file(made.network.state_dict(), kept)
    made.network.load_state_dict(load_file(kept))
    made.network.eval()
    return made


@contextmanager
def asking(name: str, compiled: Compiled, in_process: bool) -> Iterator[Network]:
    """Open the encrypted network: from an input to opened logits."""
    if in_process:
        trio = Trio(compiled.program, compiled.weights)

        def ask(features: Array) -> Array:
            opened = trio.ask(input_of(compiled.program, features))
            trio.transcript.clear()  # every message of a query is kept there
            return opened.reshape(-1)

        yield ask
        return
    with tempfile.TemporaryDirectory() as folder:
        roles = Roles(Path(folder), daily_quota=100_000, timeout_s=PATIENCE_S)
        roles.dealer_settings["timeout_s"] = PATIENCE_S
        card = publish(roles.models, compiled.program, compiled.weights, version=name)
        try:
            roles.start()
            engine = roles.engine(card, timeout_s=PATIENCE_S)
            yield lambda features: engine.infer(features).logits
            engine.close()
        finally:
            roles.stop()


def hostile(public: PublicPart, typical: Array, bound: float) -> dict[str, Array]:
    """Inputs that are made to overflow, by name."""
    rng = np.random.default_rng(SEED)
    pictures = {
        "noise": rng.uniform(0, 1, (224, 224)),
        "black and white noise": rng.integers(0, 2, (224, 224)).astype(float),
        "white": np.ones((224, 224)),
        "black": np.zeros((224, 224)),
        "stripes": np.tile([0.0, 1.0], (224, 112)),
    }
    found = {name: public.features(one.astype(np.float32)) for name, one in pictures.items()}
    largest = np.abs(typical).max()
    found |= {f"{factor} times an image": typical * factor for factor in (2, 5, 10, 100)}
    found |= {f"an image scaled to {share} of the bound": typical * (share * bound / largest) for share in (0.9, 0.999)}
    found["noise of the bound's size"] = rng.choice([-bound, bound], typical.shape)
    found["the bound everywhere"] = np.full(typical.shape, bound)
    return found


def challenge(
    ask: Callable[[Array], Array], plain: Callable[[Array], Array], given: dict[str, Array]
) -> dict[str, str]:
    """Tell of each hostile input whether it was answered rightly, or with which named error it was refused."""
    found = {}
    for name, features in given.items():
        try:
            opened = ask(features)
        except VeilRayError as error:
            found[name] = error.code
            continue
        expected = plain(features)
        # Rounded weights make an error that grows with the input, so far out the tolerance does, too.
        within = np.abs(opened - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max() / 10)
        found[name] = "right" if within else "wrong"
    return found


def run(arguments: argparse.Namespace) -> tuple[dict[str, float], dict[str, object]]:
    name, folder = arguments.network, arguments.data / "kermany224"
    training, validation = split_patients(read_manifest(folder, "train"), 0.15, SEED)
    made = trained(name, folder, training, arguments.cache)
    compiled = made.compiled()

    def plain(given: Array) -> Array:
        with torch.inference_mode():
            return made.network(torch.from_numpy(given)[None].float())[0].double().numpy()

    test = read_manifest(folder, "test", duplicates=True)
    stride = max(1, len(test.files) // arguments.limit) if arguments.limit else 1
    chosen = range(0, len(test.files), stride)
    expected, opened, started = [], [], time.monotonic()
    key = name.replace("-", "_")
    with asking(name, compiled, arguments.in_process) as ask:
        for number, image in enumerate(chosen):
            given = made.public.features(read_image(folder, test, image))
            expected.append(plain(given))
            opened.append(ask(given))
            if number % 50 == 49:
                worst = np.abs(np.array(opened) - np.array(expected)).max()
                print(f"{number + 1} of {len(chosen)} images, largest difference {worst:.1e}", flush=True)
        seconds = time.monotonic() - started
        typical = made.public.features(read_image(folder, validation, 0))
        verdicts = challenge(ask, plain, hostile(made.public, typical, compiled.program.input_bound))
    reference, found = np.array(expected), np.array(opened)
    outcomes = Counter(one if one in ("right", "wrong") else "refused" for one in verdicts.values())
    return {
        f"{key}_images": float(len(chosen)),
        f"{key}_largest_logit_difference": float(np.abs(found - reference).max()),
        f"{key}_class_agreement": float((found.argmax(1) == reference.argmax(1)).mean()),
        f"{key}_accuracy_without_dp": float((reference.argmax(1) == test.labels[chosen]).mean()),
        f"{key}_seconds_an_image": seconds / len(chosen),
        **{f"{key}_hostile_{outcome}": float(outcomes[outcome]) for outcome in ("right", "refused", "wrong")},
    }, {"hostile_inputs": verdicts, "parties": "one process" if arguments.in_process else "three processes over mTLS"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--network", choices=sorted(RECIPES), required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=Path(".cache/agreement"), help="keeps the trained network")
    parser.add_argument("--limit", type=int, help="only about so many images, for a trial")
    parser.add_argument("--in-process", action="store_true", help="the three state machines without sockets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("bench", "error")
    found, peers = run(arguments)
    figures.write(arguments.json, found, peers)


if __name__ == "__main__":
    main()
