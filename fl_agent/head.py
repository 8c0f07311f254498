"""Trains the private head on the whole public trunk by DP-SGD: one matrix, applied at each position."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dicom_node.core.errors import ConfigError
from secure_infer.card import CLASSES, Mechanism, Preprocessing, Quarters, TrunkCard, TrunkSetup
from secure_infer.models import INPUT, ConvolutionLayer, Program, Weights
from secure_infer.network import DIVISOR, FEATURE_BOUND, GRID, OFFSET, Trunk
from secure_infer.trunks import TRUNKS

from . import texts
from .accounting import descent_of, noise_for, release_of
from .order import Array, Learned, Order, Progress
from .randomness import SecureSource
from .research.dataset import images_folder
from .train import Recipe, descend, patient_rows, release_mean
from .trainset import Films, pooled_features

#: Three depths: later stages know shapes, earlier ones texture, which tells the pneumonias apart. The image is
#: enlarged, so that they see finer detail. Its quarters have weights of their own: an opacity means something else
#: above the diaphragm than below it.
SETUP = TrunkSetup(name="efficientnet-lite1", taps=("block10", "block14", "block18"), side=288, regions=2)
#: Of `trainset.VIEWS`: the sides of a chest differ, so it is not mirrored.
VIEWS = ("plain",)
RECIPE = Recipe(steps=120, sampling_rate=1.0, clip=0.2, learning_rate=15.0, momentum=0.9)
#: The bias is learned through this constant input, small against the features so that clipping spares them.
BIAS_INPUT = 0.1
#: Noise of the single release; little of the budget goes to it.
MEAN_NOISE = 8.0


def learn(order: Order, films: Films, source: SecureSource, progress: Progress) -> Learned:
    """Train a head for the training patients; see `Order` and `Learned`.

    Raises
    ------
    ConfigError
        The order names a cut, which a linear head has not (``no-cut``).
    """
    if order.cut is not None:
        raise ConfigError("a linear head has no stages to cut behind: choose a network", code="no-cut")
    folder, trunk = images_folder(order.data), default_trunk()

    def features(films: Films, what: str, views: tuple[str, ...] = ("plain",)) -> NDArray[np.float32]:
        return pooled_features(folder, films, trunk, order.cache, lambda i, n: progress(what, i, n), views)

    pooled = features(films, "training features", VIEWS)
    weights, mechanisms = train_head(pooled, films, (order.epsilon, order.delta), source, progress)
    # What is calibrated and evaluated is what is shipped, after its rounding to float32.
    matrix, bias = (weights[name].astype(np.float32).astype(np.float64) for name in ("head.weight", "head.bias"))

    def logits(films: Films, what: str) -> Array:
        found: Array = features(films, what)[:, 0] @ matrix.T + bias
        return found

    def quarters(films: Films, what: str) -> Array:
        return of_quarters(features(films, what)[:, 0], matrix, trunk)

    return Learned(
        program=program(trunk.channels),
        weights={"head.weight": matrix[..., None, None], "head.bias": bias},  # as a 1 x 1 convolution holds it
        logits=logits,
        quarters=quarters if trunk.setup.regions == 2 else None,
        mechanisms=mechanisms,
        preprocessing=preprocessing(trunk),
        trunk=trunk_card(trunk),
        not_covered=texts.NOT_COVERED,
        limits=texts.HEAD_LIMITS,
    )


def of_quarters(pooled: NDArray[np.floating], matrix: Array, trunk: Trunk) -> Array:
    """Say by which logits positions of each quarter differ from all positions, as means over them.

    Parameters
    ----------
    pooled : ndarray, shape (images, channels)
        Mean features of a trunk with regions 2.
    matrix : ndarray of float64, shape (3, channels)
    trunk : Trunk

    Returns
    -------
    ndarray of float64, shape (images, 4, 3)
        Row by row; over quarters they add up to 0.
    """
    count, owner = trunk.setup.regions**2, trunk.owners
    each = np.stack([pooled[:, owner == number] @ matrix[:, owner == number].T for number in range(count)], axis=1)
    # A quarter's channels count four times at its positions, and not at all at the others.
    found: Array = count * (each - each.mean(1, keepdims=True))
    return found


def card_quarters(found: Array | None) -> Quarters | None:
    """Round what a card says of quarters, shape (4, 3), to what its noise leaves of it."""
    if found is None:
        return None
    first, second, third, fourth = ((round(a, 4), round(b, 4), round(c, 4)) for a, b, c in found.tolist())
    return first, second, third, fourth


def program(channels: int) -> Program:
    """Describe the head for encrypted inference."""
    return Program(
        ring_bits=64,
        input_shape=(channels, GRID, GRID),
        fraction_bits=20,
        weight_fraction_bits=20,
        input_bound=FEATURE_BOUND,
        output_bound=2.0**20,
        output="head",
        layers=(ConvolutionLayer(name="head", source=INPUT, out_channels=3, kernel=(1, 1)),),
    )


def preprocessing(trunk: Trunk) -> Preprocessing:
    """Describe how an image comes to the public part."""
    return Preprocessing(
        side=trunk.setup.side,
        resampling="bicubic, antialiased",
        offset=OFFSET,
        divisor=DIVISOR,
        normalisation=texts.NORMALISATION,
    )


def trunk_card(trunk: Trunk) -> TrunkCard:
    """Describe the public part."""
    return TrunkCard(
        name=trunk.setup.name,
        sha256=trunk.sha256,
        taps=trunk.setup.taps,
        regions=None if trunk.setup.regions == 1 else trunk.setup.regions,
        source=TRUNKS[trunk.setup.name].source,
    )


def default_trunk() -> Trunk:
    """Build what the default head stands on."""
    return Trunk.of(SETUP)


def train_head(
    pooled: NDArray[np.float32],
    films: Films,
    budget: tuple[float, float],
    source: SecureSource,
    progress: Progress,
    recipe: Recipe = RECIPE,
) -> tuple[Weights, tuple[Mechanism, ...]]:
    """Train the three-class head under (epsilon, delta) for the training patients.

    Parameters
    ----------
    pooled : ndarray of float32, shape (images, views, channels)
        Norm at most 1.
    films : Films
        Labels and patients of the images.
    budget : tuple of float
        Epsilon and delta of this partition.
    source : SecureSource
    progress : callable
    recipe : Recipe

    Returns
    -------
    weights : dict
        `head.weight` and `head.bias`, for the features as they are: centring and scaling are folded in.
    mechanisms : tuple of Mechanism
    """
    mean = release_of("mean feature", "training patients", films.count, MEAN_NOISE)
    descent = noise_for(*budget, descent_of("head", "training patients", films.count, recipe), [mean])

    centre = release_mean(patient_means(pooled, films.patients), mean.clip, mean.noise_multiplier, source)
    module = linear_head(pooled.shape[2])
    rows = patient_rows(centred(pooled, centre), films.labels, films.patients)
    found = descend(module, rows, recipe, descent.noise_multiplier, source, lambda step, of: progress("head", step, of))
    return folded(found["weight"].double().numpy(), centre), (mean, descent)


def patient_means(pooled: NDArray[np.floating], patients: NDArray[np.int64]) -> Array:
    """Average the features of each patient's images and views, shape (patients, channels).

    Parameters
    ----------
    pooled : ndarray, shape (images, views, channels)
    patients : ndarray of int, shape (images,)
        From 0 without gaps.
    """
    counts = np.bincount(patients)
    means = np.zeros((len(counts), pooled.shape[2]))
    np.add.at(means, patients, pooled.mean(1))
    means /= counts[:, None]
    return means


def linear_head(channels: int) -> nn.Linear:
    """Make a head that knows nothing yet, for what `centred` gives."""
    module = nn.Linear(channels + 1, len(CLASSES), bias=False)
    nn.init.zeros_(module.weight)
    return module


def standard_deviations(mean: Array, squares: Array) -> Array:
    """Return each feature's deviation from noised moments, no less than half of what all have on average.

    Features have norm about 1, so a single one has little variance, and noise could leave it none.

    Parameters
    ----------
    mean, squares : ndarray of float64, shape (channels,)
        Of the features, and of their squares.
    """
    floor = _spread(mean) ** 2 / (4 * len(mean))
    found: Array = np.sqrt(np.maximum(squares - mean**2, floor))
    return found


def centred(
    pooled: NDArray[np.float32], centre: Array, deviations: NDArray[np.floating] | None = None
) -> NDArray[np.float32]:
    """Centre and scale features for the descent and append the constant that stands for the bias.

    Parameters
    ----------
    pooled : ndarray of float32, shape (images, views, channels)
    centre : ndarray of float64, shape (channels,)
    deviations : ndarray, shape (channels,), optional
        Of each feature; all are scaled alike where absent. Either way the mean square norm becomes about 1.

    Returns
    -------
    ndarray of float32, shape (images, views, channels + 1)
    """
    inputs = np.empty((*pooled.shape[:2], pooled.shape[2] + 1), dtype=np.float32)
    inputs[..., :-1] = (pooled - centre) / _scale(centre, deviations)
    inputs[..., -1] = BIAS_INPUT
    return inputs


def folded(learned: Array, centre: Array, deviations: NDArray[np.floating] | None = None) -> Weights:
    """Fold centring and scaling into `head.weight` and `head.bias`, for features as they are.

    Parameters
    ----------
    learned : ndarray of float64, shape (3, channels + 1)
        Of a head on what `centred` gives.
    centre : ndarray of float64, shape (channels,)
    deviations : ndarray, shape (channels,), optional
        As given to `centred`.
    """
    weight = learned[:, :-1] / _scale(centre, deviations)
    return {"head.weight": weight, "head.bias": learned[:, -1] * BIAS_INPUT - weight @ centre}


def _scale(centre: Array, deviations: NDArray[np.floating] | None) -> Array | float:
    if deviations is None:
        return _spread(centre)
    return deviations.astype(np.float64) * math.sqrt(len(deviations))


def _spread(centre: Array) -> float:
    # All vectors have length about 1, so what remains round the mean has mean square 1 - |mean|^2: no new look needed.
    return math.sqrt(max(1.0 - float(centre @ centre), 0.05))
