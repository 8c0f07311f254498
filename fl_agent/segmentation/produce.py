"""From pictures with masks to a published segmentation model: DP-SGD, Dice and IoU, compiled layers, signature."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from secure_infer.card import Figure, Mechanism, Privacy
from secure_infer.compile import compile_network
from secure_infer.models import encode_weights

from .. import texts
from ..accounting import descent_of, epsilon, noise_for
from ..figures import bootstrap
from ..randomness import SecureSource
from ..train import Recipe, descend, patient_rows
from . import card as cards
from .card import SegmentationCard
from .examples import Pairs, phantoms
from .network import SCALE, build, dice, inputs_of, iou, segment, segmentation_loss

RECIPE: Final = Recipe(steps=200, sampling_rate=0.1, clip=1.0, learning_rate=0.5, momentum=0.9, averaged=0.2)
#: Of the patients, for figures.
TEST_SHARE: Final = 0.2
AT_ONCE: Final = 64


@dataclass(frozen=True)
class Order:
    """What to make; epsilon and delta are one patient's budget."""

    version: str
    epsilon: float
    delta: float
    split_seed: int = 2018
    recipe: Recipe = RECIPE


def train(
    network: nn.Module,
    pairs: Pairs,
    recipe: Recipe,
    noise_multiplier: float,
    source: SecureSource,
    done: Callable[[int, int], None] = lambda step, steps: None,
) -> None:
    """Train in place by DP-SGD; all pictures of a patient make one row (`train.descend`).

    Raises
    ------
    ConfigError
        A layer mixes the images of a batch, as BatchNorm does (``mixes-patients``).
    """
    # The rows' labels are whole masks.
    rows = patient_rows(pairs.pictures[:, None], pairs.masks.astype(np.int64), pairs.patients)
    rows = replace(rows, labels=rows.labels.to(torch.uint8))
    found = descend(
        network.train(), rows, recipe, noise_multiplier, source, done,
        prepare=inputs_of, at_once=AT_ONCE, loss=segmentation_loss,
    )  # fmt: skip
    network.load_state_dict(found)


def produce(
    order: Order, pairs: Pairs, folder: Path, key: Ed25519PrivateKey, done: Callable[[int, int], None]
) -> SegmentationCard:
    """Train under (epsilon, delta), evaluate once on patients who were set aside, compile and publish.

    Raises
    ------
    ConfigError
        No noise meets the budget, or the version is published already.
    """
    training, test = pairs.divided(TEST_SHARE, order.split_seed)
    mechanism = noise_for(
        order.epsilon, order.delta, descent_of("segmentation", "training patients", training.count, order.recipe)
    )
    network, side = build(), pairs.pictures.shape[1]
    train(network, training, order.recipe, mechanism.noise_multiplier, SecureSource(), done)
    masks = segment(network, test.pictures)
    public = phantoms(9, side, seed=1_000_000)  # the bounds are public, so they come from nobody's pictures
    compiled = compile_network(network.eval(), inputs_of(torch.from_numpy(public.pictures)).double().numpy())
    weights = encode_weights(compiled.weights)
    card = SegmentationCard(
        name="VeilRay opacity segmentation",
        version=order.version,
        intended_use="Research into outlining opacities of frontal chest radiographs; not for diagnosis.",
        side=side,
        offset=127.5,
        divisor=64.0,
        program=compiled.program,
        scale=SCALE,
        threshold=0.0,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        data=f"{pairs.name}: {training.count} patients for training, {test.count} set aside",
        privacy=_privacy(mechanism, order.delta),
        figures=tuple(
            _figure(name, metric(masks, test.masks), test) for name, metric in (("dice", dice), ("iou", iou))
        ),
        limits=(
            "No worker serves this model: its private layers compile, and the step from channels to pixels is public.",
            "Figures on drawn phantoms say nothing about radiographs.",
        ),
    )
    cards.publish(folder, card, weights, key)
    return card


def _privacy(mechanism: Mechanism, delta: float) -> Privacy:
    return Privacy(
        epsilon=math.ceil(epsilon([mechanism], delta) * 1000) / 1000,
        delta=delta,
        unit="patient",
        adjacency="add or remove one",
        accountant=texts.ACCOUNTANT,
        noise=texts.NOISE,
        mechanisms=(mechanism,),
        not_covered="The patients who were set aside, whose figures are given without noise.",
    )


def _figure(name: str, values: np.ndarray, test: Pairs) -> Figure:
    found = bootstrap(lambda weights: float((weights * values).sum() / weights.sum()), test.patients)
    rounded = {end: round(getattr(found, end), 4) for end in ("value", "low", "high")}
    return Figure(name=name, images=len(values), patients=test.count, **rounded)
