"""From the data set to a published model: split, training and calibration under DP, test figures, card, signature."""

from __future__ import annotations

import csv
import hashlib
import math
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core.errors import ConfigError
from secure_infer.card import CLASSES, Calibration, Data, Figure, ModelCard, OperatingPoint, Privacy, SplitCount
from secure_infer.models import ModelStore, encode_weights

from . import deep, head, texts
from .accounting import epsilon
from .calibration import ABSENT_BELOW, PRESENT_FROM, Calibrated, calibrate
from .figures import bootstrap, pneumonia_metrics
from .order import HEAD, Array, Learned, Order, Progress
from .randomness import SecureSource
from .research.dataset import DataSet, open_data_set
from .trainset import Films, split_patients

VALIDATION_SHARE = 0.15
#: Below this the card warns of false alarms first.
UNSPECIFIC = 0.7


def produce(order: Order, store: ModelStore, key: Ed25519PrivateKey, progress: Progress) -> ModelCard:
    """Train, calibrate, evaluate once on the test split, and publish.

    There is no way past the noise: a card carries the account of its privacy, and nothing is published without one.

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
    data = open_data_set(order.data)
    train, validation = split_patients(data.train, VALIDATION_SHARE, order.split_seed)
    test = data.test
    source, budget = SecureSource(), (order.epsilon, order.delta)
    learn = head.learn if order.network == HEAD else deep.learn
    learned = learn(order, train, source, progress)
    held_out = learned.logits(validation, "validation images")
    quarters = None if learned.quarters is None else learned.quarters(validation, "validation images")
    calibrated = calibrate(held_out, validation, budget, source, progress, quarters)
    figures = _figures(calibrated.probabilities(learned.logits(test, "test images")), test)
    encoded = encode_weights(learned.weights)
    splits = {"train": train, "validation": validation, "test": test}
    card = _card(order, data, learned, calibrated, splits, figures, hashlib.sha256(encoded).hexdigest())
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
    order: Order,
    data: DataSet,
    learned: Learned,
    calibrated: Calibrated,
    splits: dict[str, Films],
    figures: tuple[Figure, ...],
    digest: str,
) -> ModelCard:
    mechanisms = (*learned.mechanisms, *calibrated.mechanisms)
    counts = []
    for name, films in splits.items():
        images, patients = films.sizes()
        counts.append(SplitCount.model_validate({"split": name, "images": images, "patients": patients}))
    about, specificity = data.about, {one.name: one.value for one in figures}["specificity_at_half"]
    alarms = (texts.unspecific(specificity),) if specificity < UNSPECIFIC else ()
    return ModelCard(
        name=about.model,
        version=order.version,
        intended_use=about.intended_use,
        classes=CLASSES,
        population=about.population,
        preprocessing=learned.preprocessing,
        trunk=learned.trunk,
        suffix=learned.program,
        weights_sha256=digest,
        calibration=Calibration(
            scale=calibrated.scale,
            offsets=calibrated.offsets,
            method=data.calibration,
            quarters=head.card_quarters(calibrated.quarters),
        ),
        operating_point=OperatingPoint(
            absent_below=ABSENT_BELOW, present_from=PRESENT_FROM, undetermined_share=round(calibrated.band_share, 3)
        ),
        data=Data(
            name=about.name,
            licence=about.licence,
            splits=tuple(counts),
            how_split=texts.how_split(data.how_split, VALIDATION_SHARE, order.split_seed),
        ),
        privacy=Privacy(
            epsilon=math.ceil(epsilon(mechanisms, order.delta) * 1000) / 1000,
            delta=order.delta,
            unit="patient",
            adjacency="add or remove one",
            accountant=texts.ACCOUNTANT,
            noise=texts.NOISE,
            mechanisms=mechanisms,
            not_covered=data.not_covered or learned.not_covered,
        ),
        figures=figures,
        context=(data.figures, *_expert_reading(order.data / "expert_reading" / "expert_labels_mapped.csv")),
        limits=(*alarms, *about.limits, *learned.limits),
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
