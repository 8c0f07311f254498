"""Trains a whole private network, or private last stages, by DP-SGD, and compiles it for encrypted inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicom_node import phantom
from dicom_node.core.errors import ConfigError
from dicom_node.pixels import INPUT_SIZE, from_picture
from secure_infer.card import Mechanism, PrefixCard, Preprocessing
from secure_infer.compile import Compiled, compile_network
from secure_infer.networks import ARCHITECTURES, lite0_suffix
from secure_infer.public import Greys, Prefix, PublicPart
from secure_infer.trunks import LITE0

from . import texts
from .accounting import descent_of, noise_for
from .order import Array, Learned, Order, Progress
from .randomness import SecureSource
from .research.dataset import images_folder
from .train import Recipe, descend, patient_rows
from .trainset import Films, read_image


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes
    ----------
    recipe : Recipe
    at_once : int
        Images whose gradients are held at once, each as large as the network.
    """

    recipe: Recipe
    at_once: int


PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        "small-cnn": Plan(Recipe(200, 0.05, 1.0, 0.5, 0.9), 256),
        "resnet18": Plan(Recipe(300, 0.06, 1.0, 0.5, 0.9), 8),
        "resnet18-max": Plan(Recipe(300, 0.06, 1.0, 0.5, 0.9), 8),
        "efficientnet-lite0": Plan(Recipe(200, 0.1, 1.0, 0.5, 0.9), 16),
    }
)


@dataclass(frozen=True)
class Deep:
    """A private network and the public part before it.

    Attributes
    ----------
    name : str
        Of `ARCHITECTURES`.
    network : Module
    public : PublicPart
    cut : str or None
        The last public stage of the trunk; None where all is private.
    """

    name: str
    network: nn.Module
    public: PublicPart
    cut: str | None

    def logits(self, images: NDArray[np.uint8], done: Callable[[int, int], None]) -> Array:
        """Evaluate images, shape (n, 224, 224) of 0..255, in the clear; shape (n, 3)."""
        self.network.eval()
        found = []
        with torch.no_grad():
            for image in images:
                found.append(self.network(self.public.features_of(_greys(image[None])))[0].double().numpy())
                done(len(found), len(images))
        return np.array(found)

    def compiled(self) -> Compiled:
        """Compile; the bounds, which are public, come from public pictures."""
        self.network.eval()
        return compile_network(self.network, np.stack([self.public.features(one) for one in public_pictures()]))


def make(name: str, cut: str | None = None) -> Deep:
    """Make an untrained network of `ARCHITECTURES`, for the trunk at another cut where one is given."""
    made = ARCHITECTURES[name]
    if made.cut is None:
        if cut is not None:
            raise ConfigError(f"{name} has no public stages to cut behind", code="no-cut")
        network = made.build()
        channels = next(one.in_channels for one in network.modules() if isinstance(one, nn.Conv2d))
        return Deep(name, network, Greys(made.side, channels, made.offset, made.divisor), None)
    after = cut or made.cut
    public = Prefix(after)  # refuses what is no stage
    return Deep(name, lite0_suffix(after), public, after)


def learn(order: Order, films: Films, source: SecureSource, progress: Progress) -> Learned:
    """Train a network for the training patients and compile it; see `Order` and `Learned`.

    Raises
    ------
    ConfigError
        A cut is named for a network without public stages (``no-cut``), or is no stage of the trunk.
    """
    folder, made = images_folder(order.data), make(order.network, order.cut)

    def read(films: Films, what: str) -> NDArray[np.uint8]:
        return read_images(folder, films, lambda i, n: progress(what, i, n))

    mechanisms = train_deep(
        made,
        read(films, "training images"),
        films,
        (order.epsilon, order.delta),
        source,
        lambda step, steps: progress("private steps", step, steps),
    )
    compiled, scale = made.compiled(), ARCHITECTURES[order.network]
    trunk = None
    if made.cut is not None:
        trunk = PrefixCard(name="efficientnet-lite0", sha256=LITE0.sha256, cut=made.cut, source=LITE0.source)
    return Learned(
        program=compiled.program,
        weights=compiled.weights,
        logits=lambda films, what: made.logits(read(films, what), lambda i, n: progress(f"{what}, evaluated", i, n)),
        quarters=None,
        mechanisms=mechanisms,
        preprocessing=Preprocessing(
            side=scale.side,
            resampling="bicubic, antialiased",
            offset=scale.offset,
            divisor=scale.divisor,
            normalisation=texts.NO_NORMALISATION,
        ),
        trunk=trunk,
        not_covered=texts.NOT_COVERED_DEEP,
        limits=texts.DEEP_LIMITS,
    )


def public_pictures() -> list[NDArray[np.float32]]:
    """Draw what is no patient's: phantoms, noise, white and black, shape (224, 224), 0..1."""
    rng = np.random.default_rng(0)
    drawn = [from_picture(phantom.draw(seed, kind)) for seed, kind in enumerate(phantom.KINDS * 4)]
    noise = [rng.uniform(0, 1, (INPUT_SIZE, INPUT_SIZE)).astype(np.float32) for _ in range(2)]
    return [*drawn, *noise, *(np.full((INPUT_SIZE, INPUT_SIZE), one, np.float32) for one in (0.0, 0.5, 1.0))]


def train_deep(
    made: Deep,
    images: NDArray[np.uint8],
    films: Films,
    budget: tuple[float, float],
    source: SecureSource,
    done: Callable[[int, int], None],
    plan: Plan | None = None,
) -> tuple[Mechanism, ...]:
    """Train a network in place under (epsilon, delta) for the training patients.

    Parameters
    ----------
    made : Deep
    images : ndarray of uint8, shape (images, 224, 224)
    films : Films
        Their labels and patients.
    budget : tuple of float
        Epsilon and delta of this partition.
    source : SecureSource
    done : callable
        Called with (steps done, of all).
    plan : Plan, optional
        Instead of that of `PLANS`.

    Returns
    -------
    tuple of Mechanism
    """
    plan = plan or PLANS[made.name]
    descent = noise_for(*budget, descent_of("network", "training patients", films.count, plan.recipe))

    def prepare(chosen: Tensor) -> Tensor:
        # Mirrored by a coin for each image and step: no more of the data is seen than without.
        mirrored = torch.rand(len(chosen))[:, None, None] < 0.5
        return made.public.features_of(_greys(torch.where(mirrored, chosen.flip(2), chosen).numpy()))

    rows = patient_rows(images[:, None], films.labels, films.patients)
    found = descend(
        made.network,
        rows,
        plan.recipe,
        descent.noise_multiplier,
        source,
        done,
        prepare=prepare,
        at_once=plan.at_once,
    )
    made.network.load_state_dict(found)
    return (descent,)


def read_images(folder: Path, films: Films, done: Callable[[int, int], None]) -> NDArray[np.uint8]:
    """Read images as bytes, shape (images, 224, 224); see `trainset.read_image`."""
    found = np.empty((len(films.files), INPUT_SIZE, INPUT_SIZE), dtype=np.uint8)
    for number in range(len(films.files)):
        found[number] = np.rint(read_image(folder, films, number) * 255.0)
        done(number + 1, len(films.files))
    return found


def _greys(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255.0)
