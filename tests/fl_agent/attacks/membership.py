"""Membership inference by likelihood ratio (LiRA, Carlini et al. 2022, arXiv 2112.03570, online, shared variance).

The attacker trains shadow heads on random halves of the patients, so each patient is in half of them, and learns how
sure a head is of a patient who was in its training, and of one who was not. The head that is attacked was trained on a
half, too; who seems to be in it is told by which of the two explains its sureness better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from fl_agent import head
from fl_agent.accounting import noise_for
from fl_agent.figures import auc
from fl_agent.randomness import SecureSource
from fl_agent.trainset import Films
from secure_infer.card import Mechanism
from secure_infer.models import Weights
from tests.fl_agent.attacks.audit import audit

Array = NDArray[np.float64]
#: From features (images, channels) and labels of some patients, one image each, to a head.
Train = Callable[[NDArray[np.float32], NDArray[np.int64]], Weights]


@dataclass(frozen=True)
class Membership:
    """How well an attacker tells members from others.

    Attributes
    ----------
    auc : float
        0.5 is guessing.
    caught : float
        Share of the members that are named while one in a hundred others is.
    epsilon : float
        Lower bound of ε at 95 % confidence, see `audit`.
    """

    auc: float
    caught: float
    epsilon: float


def sureness(weights: Weights, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Array:
    """Log-odds of the right class for each patient: nearly normal, as the attack wants it."""
    logits = features @ weights["head.weight"].reshape(3, -1).T + weights["head.bias"]
    right = logits[np.arange(len(labels)), labels]
    wrong = np.where(np.arange(3) == labels[:, None], -np.inf, logits)
    odds: Array = right - logsumexp(wrong, axis=1)
    return odds


def ratios(seen: Array, shadows: Array, inside: NDArray[np.bool_]) -> Array:
    """Score each patient by the logarithm of the likelihood ratio.

    Parameters
    ----------
    seen : ndarray, shape (patients,)
        Sureness of the head that is attacked.
    shadows : ndarray, shape (heads, patients)
    inside : ndarray of bool, shape (heads, patients)
        Who was in the training of which.
    """
    means = {flag: np.nanmean(np.where(inside == flag, shadows, np.nan), axis=0) for flag in (True, False)}
    spread = np.where(inside, shadows - means[True], shadows - means[False]).std() + 1e-12
    found: Array = ((seen - means[False]) ** 2 - (seen - means[True]) ** 2) / (2 * spread**2)
    return found


def attack(
    features: NDArray[np.float32], labels: NDArray[np.int64], train: Train, shadows: int, delta: float, seed: int = 0
) -> Membership:
    """Train a head on a random half of the patients, and shadows on others, and tell who was in it.

    Parameters
    ----------
    features : ndarray of float32, shape (patients, channels)
        One image each.
    labels : ndarray of int, shape (patients,)
    train : callable
    shadows : int
        Even.
    delta : float
        Of the audit.
    seed : int
    """
    random = np.random.default_rng(seed)
    # Complements come in pairs, so that each patient is in half of the shadows.
    halves = random.random((shadows // 2, len(labels))) < 0.5
    inside = np.concatenate([halves, ~halves])
    coins = random.random(len(labels)) < 0.5
    told = np.array([sureness(train(features[who], labels[who]), features, labels) for who in (coins, *inside)])
    scores = ratios(told[0], told[1:], inside)
    threshold = np.quantile(scores[~coins], 0.99)
    return Membership(
        auc(scores, coins), float((scores[coins] > threshold).mean()), audit(scores, coins, delta).epsilon
    )


def private(epsilon: float, delta: float) -> Train:
    """The head as it is shipped, under a budget."""

    known: list[Mechanism] = []

    def calibrated(*arguments: Any) -> Mechanism:
        # The noise depends on the budget and not on the half that is trained on: one search serves all heads.
        if not known:
            known.append(noise_for(*arguments))
        return known[0]

    def train(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Weights:
        count = len(labels)
        films = Films(("",) * count, ("",) * count, labels, np.arange(count))
        with mock.patch.object(head, "noise_for", calibrated):
            weights, _ = head.train_head(features[:, None], films, (epsilon, delta), SecureSource(), lambda *_: None)
        return weights

    return train


def plain(steps: int = 300, rate: float = 200.0) -> Train:
    """Logistic regression by full gradients until it knows its patients: no clip, no noise."""

    def train(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Weights:
        centre = features.mean(0)
        inputs, targets = features - centre, np.eye(3)[labels]
        weight, bias = np.zeros((3, features.shape[1])), np.zeros(3)
        for _ in range(steps):
            logits = inputs @ weight.T + bias
            error = np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) - targets
            weight -= rate * (error.T @ inputs) / len(labels)
            bias -= error.mean(0)
        return {"head.weight": weight, "head.bias": bias - weight @ centre}

    return train
