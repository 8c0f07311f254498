"""From the data set to a published model: split, features, head and calibration under DP, test figures, card."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from dicom_node.core.errors import ConfigError
from dicom_node.core.settings import Population
from secure_infer.card import (
    CLASSES,
    Calibration,
    Data,
    Figure,
    Mechanism,
    ModelCard,
    OperatingPoint,
    Preprocessing,
    Privacy,
    SplitCount,
    TrunkCard,
)
from secure_infer.models import INPUT, ConvolutionLayer, ModelStore, Program, Weights, encode_weights
from secure_infer.network import FEATURE_BOUND, GRID, TRUNK_NAME, TRUNK_SHA256, Trunk

from . import texts
from .figures import bootstrap, pneumonia_metrics
from .randomness import SecureSource
from .train import Recipe, descend, epsilon, noise_for, patient_rows, release_mean
from .trainset import VIEWS, Films, pooled_features, read_manifest, split_patients

#: Three depths of the trunk: late stages know objects, earlier ones texture, which tells the pneumonias apart.
TAPS = ("block10", "block13", "head")
VALIDATION_SHARE = 0.15
HEAD = Recipe(steps=60, sampling_rate=1.0, clip=0.2, learning_rate=30.0, momentum=0.9)
#: The bias is learned through this constant input, small against the features so that clipping spares them.
BIAS_INPUT = 0.1
CALIBRATION = Recipe(steps=100, sampling_rate=1.0, clip=1.0, learning_rate=1.0, momentum=0.0)
#: Logits enter calibration divided by this, so that its four gradients have like sizes.
LOGIT_SCALE = 3.0
#: Noise of the two single releases; little of the budget goes to them.
MEAN_NOISE, BAND_NOISE = 8.0, 10.0
ABSENT_BELOW, PRESENT_FROM = 0.30, 0.60

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """What to make.

    Attributes
    ----------
    data : Path
        Holds `kermany224` and, for context, `expert_reading`.
    cache : Path
        Folder of the trunk's features.
    version : str
        Of the model.
    epsilon, delta : float
        Budget of the whole model.
    split_seed : int
        Of the validation patients.
    """

    data: Path
    cache: Path
    version: str
    epsilon: float
    delta: float
    split_seed: int


@dataclass(frozen=True)
class Trained:
    """A trained and calibrated head with the account of its privacy."""

    weights: Weights
    scale: float
    offsets: tuple[float, float, float]
    band_share: float
    mechanisms: tuple[Mechanism, ...]

    def logits(self, pooled: NDArray[np.floating]) -> Array:
        """Logits of pooled features, shape (..., channels)."""
        found: Array = pooled @ self.weights["head.weight"].T + self.weights["head.bias"]
        return found

    def probabilities(self, pooled: NDArray[np.floating]) -> Array:
        """Calibrated probabilities of pooled features."""
        found: Array = softmax(self.scale * self.logits(pooled) + np.array(self.offsets), axis=-1)
        return found


def _release(name: str, partition: str, patients: int, noise: float) -> Mechanism:
    return Mechanism(
        name=name,
        partition=partition,
        kind="Gaussian",
        patients=patients,
        sampling_rate=1.0,
        noise_multiplier=noise,
        clip=1.0,
        steps=1,
    )


def _descent(name: str, partition: str, patients: int, recipe: Recipe) -> Mechanism:
    """Describe a descent whose noise `noise_for` has yet to choose."""
    return Mechanism(
        name=name,
        partition=partition,
        kind="DP-SGD",
        patients=patients,
        sampling_rate=recipe.sampling_rate,
        noise_multiplier=1.0,
        clip=recipe.clip,
        steps=recipe.steps,
    )


def train_head(
    pooled: NDArray[np.float32],
    films: Films,
    budget: tuple[float, float],
    source: SecureSource,
    progress: Progress,
    recipe: Recipe = HEAD,
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
    mean = _release("mean feature", "training patients", films.count, MEAN_NOISE)
    descent = noise_for(*budget, _descent("head", "training patients", films.count, recipe), [mean])

    per_patient = np.zeros((films.count, pooled.shape[2]))
    np.add.at(per_patient, films.patients, pooled.mean(1))
    per_patient /= np.bincount(films.patients)[:, None]
    centre = release_mean(per_patient, mean.clip, mean.noise_multiplier, source)
    # All vectors have length about 1, so what remains round the mean has mean square 1 - |mean|^2: no new look needed.
    spread = math.sqrt(max(1.0 - float(centre @ centre), 0.05))
    inputs = np.empty((*pooled.shape[:2], pooled.shape[2] + 1), dtype=np.float32)
    inputs[..., :-1] = (pooled - centre) / spread
    inputs[..., -1] = BIAS_INPUT
    module = nn.Linear(inputs.shape[2], len(CLASSES), bias=False)
    nn.init.zeros_(module.weight)
    rows = patient_rows(inputs, films.labels, films.patients)
    found = descend(module, rows, recipe, descent.noise_multiplier, source, lambda step, of: progress("head", step, of))
    learned = found["weight"].double().numpy()
    weight = learned[:, :-1] / spread
    return {"head.weight": weight, "head.bias": learned[:, -1] * BIAS_INPUT - weight @ centre}, (mean, descent)


def calibrate(
    logits: Array, films: Films, budget: tuple[float, float], source: SecureSource, progress: Progress
) -> tuple[float, tuple[float, float, float], float, tuple[Mechanism, ...]]:
    """Find scale and offsets of the logits, and the share of the undetermined, on other patients under DP.

    Parameters
    ----------
    logits : ndarray of float64, shape (images, 3)
        Of the validation images.

    Returns
    -------
    scale : float
    offsets : tuple of float
        Sum 0.
    share : float
        Of the patients (their images counting equally) whose answer is undetermined, with noise, within 0..1.
    mechanisms : tuple of Mechanism
    """
    band = _release("undetermined share", "validation patients", films.count, BAND_NOISE)
    descent = noise_for(*budget, _descent("calibration", "validation patients", films.count, CALIBRATION), [band])
    # One shared row of four weights, scale and three offsets, applied to (logit of the class, one-hot of the class).
    inputs = np.empty((len(logits), 1, 3, 4), dtype=np.float32)
    inputs[:, 0, :, 0] = logits / LOGIT_SCALE
    inputs[:, 0, :, 1:] = np.eye(3)
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[LOGIT_SCALE, 0.0, 0.0, 0.0]]))
    rows = patient_rows(inputs, films.labels, films.patients)
    found = descend(
        module,
        rows,
        CALIBRATION,
        descent.noise_multiplier,
        source,
        lambda step, of: progress("calibration", step, of),
    )
    scale, *offsets = (float(value) for value in found["weight"][0])
    scale /= LOGIT_SCALE
    if scale <= 0:
        raise ConfigError("calibration turned the logits round: the head has learned nothing", code="training-failed")
    mean = sum(offsets) / 3
    centred = (offsets[0] - mean, offsets[1] - mean, offsets[2] - mean)

    pneumonia = 1.0 - softmax(scale * logits + np.array(centred), axis=1)[:, 0]
    inside = (pneumonia >= ABSENT_BELOW) & (pneumonia < PRESENT_FROM)
    per_patient = np.bincount(films.patients, inside) / np.bincount(films.patients)
    share = release_mean(per_patient[:, None], band.clip, band.noise_multiplier, source)[0]
    return scale, centred, float(np.clip(share, 0.0, 1.0)), (descent, band)


def produce(order: Order, store: ModelStore, key: Ed25519PrivateKey, progress: Progress) -> ModelCard:
    """Train, calibrate, evaluate once on the test split, and publish.

    Parameters
    ----------
    order : Order
    store : ModelStore
        Receives the version.
    key : Ed25519PrivateKey
        Signs its card.
    progress : callable
        Called with (what, done, of all).

    Returns
    -------
    ModelCard
    """
    if order.version in store.versions():
        raise ConfigError(f"model {order.version} is already published: choose another version", code="published")
    folder = order.data / "kermany224"
    trunk = Trunk(TAPS)
    train, validation = split_patients(read_manifest(folder, "train"), VALIDATION_SHARE, order.split_seed)
    test = read_manifest(folder, "test")

    def features(films: Films, views: tuple[str, ...], what: str) -> NDArray[np.float32]:
        return pooled_features(folder, films, trunk, order.cache, lambda i, n: progress(what, i, n), views)

    source, budget = SecureSource(), (order.epsilon, order.delta)
    weights, spent = train_head(features(train, VIEWS, "training features"), train, budget, source, progress)
    # What is calibrated and evaluated is what is shipped, after its rounding to float32.
    weights = {name: tensor.astype(np.float32).astype(np.float64) for name, tensor in weights.items()}
    head = Trained(weights, 1.0, (0.0, 0.0, 0.0), 0.0, spent)
    held_out = features(validation, VIEWS[:1], "validation features")[:, 0]
    scale, offsets, share, more = calibrate(head.logits(held_out), validation, budget, source, progress)
    trained = Trained(weights, scale, offsets, share, (*spent, *more))
    seen = trained.probabilities(features(test, VIEWS[:1], "test features")[:, 0])
    figures = _figures(seen, test)
    # As a 1 x 1 convolution holds it.
    encoded = encode_weights(weights | {"head.weight": weights["head.weight"][..., None, None]})
    splits = {"train": train, "validation": validation, "test": test}
    card = _card(order, trunk, trained, splits, figures, hashlib.sha256(encoded).hexdigest())
    store.publish(card, encoded, key)
    return card


def _figures(probabilities: Array, films: Films) -> tuple[Figure, ...]:
    found = []
    for name, metric in pneumonia_metrics(probabilities, films.labels).items():
        interval = bootstrap(metric, films.patients)
        rounded = {end: round(getattr(interval, end), 4) for end in ("value", "low", "high")}
        found.append(Figure(name=name, images=len(films.files), patients=films.count, **rounded))
    return tuple(found)


def _card(
    order: Order, trunk: Trunk, trained: Trained, splits: dict[str, Films], figures: tuple[Figure, ...], digest: str
) -> ModelCard:
    spent = math.ceil(epsilon(trained.mechanisms, order.delta) * 1000) / 1000
    counts = []
    for name, films in splits.items():
        images, patients = films.sizes()
        counts.append(SplitCount.model_validate({"split": name, "images": images, "patients": patients}))
    return ModelCard(
        name="VeilRay paediatric pneumonia",
        version=order.version,
        intended_use=texts.INTENDED_USE,
        classes=CLASSES,
        population=Population(min_age_years=1, max_age_years=5, views=("AP", "PA")),
        preprocessing=Preprocessing(
            side=224,
            resampling="bicubic, antialiased",
            offset=127.0,
            divisor=128.0,
            normalisation=texts.NORMALISATION,
        ),
        trunk=TrunkCard(name=TRUNK_NAME, sha256=TRUNK_SHA256, taps=trunk.taps, source=texts.TRUNK_SOURCE),
        suffix=Program(
            ring_bits=64,
            input_shape=(trunk.channels, GRID, GRID),
            fraction_bits=20,
            weight_fraction_bits=20,
            input_bound=FEATURE_BOUND,
            output_bound=2.0**20,
            output="head",
            layers=(ConvolutionLayer(name="head", source=INPUT, out_channels=3, kernel=(1, 1)),),
        ),
        weights_sha256=digest,
        calibration=Calibration(scale=trained.scale, offsets=trained.offsets, method=texts.CALIBRATION),
        operating_point=OperatingPoint(
            absent_below=ABSENT_BELOW, present_from=PRESENT_FROM, undetermined_share=round(trained.band_share, 3)
        ),
        data=Data(
            name=texts.DATA,
            licence=texts.DATA_LICENCE,
            splits=tuple(counts),
            how_split=texts.how_split(VALIDATION_SHARE, order.split_seed),
        ),
        privacy=Privacy(
            epsilon=spent,
            delta=order.delta,
            unit="patient",
            adjacency="add or remove one",
            accountant=texts.ACCOUNTANT,
            noise=texts.NOISE,
            mechanisms=trained.mechanisms,
            not_covered=texts.NOT_COVERED,
        ),
        figures=figures,
        context=(texts.FIGURES, *_expert_reading(order.data / "expert_reading" / "expert_labels_mapped.csv")),
        limits=texts.LIMITS,
        licence="Apache-2.0",
    )


def _expert_reading(path: Path) -> tuple[str, ...]:
    """Say how far one radiologist agrees with the labels, where the reading is at hand."""
    if not path.is_file():
        return ()
    with path.open(newline="") as stream:
        pairs = np.array([(int(r["dataset_label"]), int(r["expert_label"])) for r in csv.DictReader(stream)])
    three = float((pairs[:, 0] == pairs[:, 1]).mean())
    two = float(((pairs[:, 0] > 0) == (pairs[:, 1] > 0)).mean())
    return (texts.expert_reading(len(pairs), three, two),)
