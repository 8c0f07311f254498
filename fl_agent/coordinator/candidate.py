"""The signed model that comes of a run: weights, card and signature, for hospitals to judge (Mitchell et al. 2019)."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core.errors import ConfigError
from dicom_node.core.settings import Population
from secure_infer.card import CLASSES, Calibration, Data, ModelCard, OperatingPoint, Privacy, Quarters
from secure_infer.models import ModelStore, encode_weights
from secure_infer.network import Trunk

from .. import head, texts
from ..calibration import ABSENT_BELOW, PRESENT_FROM
from ..learning import server, terms
from ..learning.plan import Plan
from ..learning.server import Training
from ..order import Array

#: Deviation of the noise, in logits, beyond which a map of evidence is better left as it is.
LARGEST_BLUR = 2.0


class Publisher:
    """Puts candidates into a model store.

    Parameters
    ----------
    store : ModelStore
        Trusts the key's own signature, too.
    key : Ed25519PrivateKey
        Signs the card.
    population : Population
        Whom the consortium's patients stand for.
    """

    def __init__(self, store: ModelStore, key: Ed25519PrivateKey, population: Population) -> None:
        self._store, self._key, self._population = store, key, population

    def publish(self, plan: Plan, training: Training) -> ModelCard:
        """Publish what came of a run; harmless the second time.

        Raises
        ------
        ConfigError
            The version is there with other weights (``published``).
        """
        weights, trunk = server.published(plan, training), Trunk.of(plan.trunk)
        quarters = head.card_quarters(_quarters(plan, training, weights["head.weight"], trunk))
        weights["head.weight"] = weights["head.weight"][..., None, None]  # as a 1 x 1 convolution holds it
        encoded = encode_weights(weights)
        card = self._card(plan, trunk, training, hashlib.sha256(encoded).hexdigest(), quarters)
        if plan.version in self._store.versions():
            # A coordinator that was killed between publishing and noting it comes here.
            if self._store.card(plan.version) != card:
                raise ConfigError(f"model {plan.version} is published and is another one", code="published")
            return card
        self._store.publish(card, encoded, self._key)
        return card

    def _card(self, plan: Plan, trunk: Trunk, training: Training, digest: str, quarters: Quarters | None) -> ModelCard:
        cost = terms.epsilons(plan)
        spent = [one for release in terms.releases(plan) for one in terms.spendings(plan, release)]
        return ModelCard(
            name="VeilRay federated pneumonia",
            version=plan.version,
            intended_use=texts.INTENDED_USE,
            classes=CLASSES,
            population=self._population,
            preprocessing=head.preprocessing(trunk),
            trunk=head.trunk_card(trunk),
            suffix=head.program(plan.channels),
            weights_sha256=digest,
            calibration=Calibration(scale=1.0, offsets=(0.0, 0.0, 0.0), method=texts.NOT_CALIBRATED, quarters=quarters),
            operating_point=OperatingPoint(
                absent_below=ABSENT_BELOW,
                present_from=PRESENT_FROM,
                undetermined_share=training.undetermined,
            ),
            data=Data(
                name=texts.FEDERATED_DATA, licence=texts.FEDERATED_LICENCE, splits=(), how_split=texts.FEDERATED_SPLIT
            ),
            privacy=Privacy(
                epsilon=_rounded_up(cost.claimed),
                epsilon_alone=_rounded_up(cost.alone),
                delta=plan.delta,
                unit="patient",
                adjacency="add or remove one",
                accountant=texts.FEDERATED_ACCOUNTANT,
                noise=texts.distributed_noise(plan.honest) if plan.mode == "distributed" else texts.NOISE,
                mechanisms=tuple(spent),
                not_covered=texts.FEDERATED_NOT_COVERED,
            ),
            figures=(),
            context=(texts.federated_course(len(plan.members), plan.descent.rounds, plan.digest.hex()),),
            limits=texts.FEDERATED_LIMITS,
            licence="Apache-2.0",
        )


def _quarters(plan: Plan, training: Training, matrix: Array, trunk: Trunk) -> Array | None:
    """Say how quarters differ in a usual image, from the noised mean feature; None where noise would drown it."""
    if plan.trunk.regions == 1 or plan.centre is None:
        return None
    hospitals = len(plan.members) if plan.mode == "site" else 1
    noise = plan.centre.noise_multiplier * math.sqrt(hospitals) / sum(one.patients for one in plan.members)
    # A quarter has about a quarter of each row's squares, and counts four times at its positions.
    if plan.trunk.regions * noise * float(np.linalg.norm(matrix, axis=1).max()) > LARGEST_BLUR:
        return None
    found: Array = head.of_quarters(training.state().centre[None].astype(np.float64), matrix, trunk)[0]
    return found


def _rounded_up(epsilon: float) -> float:
    return math.ceil(epsilon * 1000) / 1000
