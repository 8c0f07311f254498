"""Canaries: invented patients whose clipped gradients are as long as allowed and meet nobody else's.

Canary i has one feature of its own, so its gradient stands in columns of the head where else there is noise alone. That
is the worst patient that the proof of DP-SGD allows, and what the audit of Steinke et al. 2023, section 6, calls a
Dirac canary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_agent.head import train_head
from fl_agent.randomness import SecureSource
from fl_agent.train import Recipe, Rows, descend
from fl_agent.trainset import Films

Scores = NDArray[np.float64]
Coins = NDArray[np.bool_]

#: So long that a canary's gradient is always clipped.
LENGTH = 100.0
#: So small that no weight becomes worth mentioning: every step sees the same gradients.
SLOW = 1e-6
#: What a canary of class 0 moves apart: its column of the head's matrix, as the attacker reads it.
DIRECTION = np.array([1.0, -0.5, -0.5])


class Faint(SecureSource):
    """A source whose noise is too small by a factor, which nothing that uses it notices: the fault to be found."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def normal(self, count: int) -> NDArray[np.float64]:
        return super().normal(count) * self._factor


def flip(count: int, seed: int) -> Coins:
    """The coins; the same for every run of a test, for what is random in an audit is the noise."""
    coins: Coins = np.random.default_rng(seed).random(count) < 0.5
    return coins


def descent_scores(
    coins: Coins, recipe: Recipe, noise_multiplier: float, source: SecureSource, *, closed: bool = False
) -> Scores:
    """Run `descend` on the included canaries and read from its weights how much each canary seems to be in.

    Parameters
    ----------
    coins : ndarray of bool, shape (m,)
    recipe : Recipe
        Its learning rate is not read.
    noise_multiplier : float
    source : SecureSource
    closed : bool
        Let `descend` take its steps of a linear head in closed form, which needs all features in memory.
    """

    def seen(numbers: Tensor) -> Tensor:
        found = torch.zeros(len(numbers), len(coins))
        found[torch.arange(len(numbers)), numbers] = LENGTH
        return found

    inside = torch.from_numpy(np.flatnonzero(coins))
    labels, patients = torch.zeros(len(inside), dtype=torch.int64), torch.arange(len(inside))
    rows = Rows(seen(inside) if closed else inside, labels, patients, torch.ones(len(inside)))
    module = nn.Linear(len(coins), 3, bias=False)
    nn.init.zeros_(module.weight)
    slow = Recipe(recipe.steps, recipe.sampling_rate, recipe.clip, SLOW, recipe.momentum, recipe.averaged)
    at_once = max(16, 2**24 // (3 * len(coins)))
    found = descend(module, rows, slow, noise_multiplier, source, prepare=None if closed else seen, at_once=at_once)
    scores: Scores = DIRECTION @ found["weight"].double().numpy()
    return scores


def head_scores(coins: Coins, others: int, budget: tuple[float, float], source: SecureSource) -> Scores:
    """Train the head as it is shipped, for `others` ordinary patients and the included canaries.

    Parameters
    ----------
    coins : ndarray of bool, shape (m,)
    others : int
        Patients with features of their own, behind those of the canaries.
    budget : tuple of float
        Epsilon and delta.
    source : SecureSource
    """
    random = np.random.default_rng(5)
    inside = np.flatnonzero(coins)
    count, breadth = len(inside) + others, 16
    pooled = np.zeros((count, 1, len(coins) + breadth), dtype=np.float32)
    pooled[np.arange(len(inside)), 0, inside] = 1.0
    # Of all classes alike: a head that knew the canaries' class beforehand would have short gradients for them.
    classes = np.arange(len(coins)) % 3
    labels = np.concatenate([classes[inside], np.arange(others) % 3])
    ordinary = random.normal(size=(others, breadth)) + 3 * np.eye(3, breadth)[labels[len(inside) :]]
    pooled[len(inside) :, 0, len(coins) :] = ordinary / np.linalg.norm(ordinary, axis=1, keepdims=True)
    films = Films(("",) * count, ("",) * count, labels, np.arange(count))
    weights, _ = train_head(pooled, films, budget, source, lambda *_: None)
    columns = weights["head.weight"][:, : len(coins)]
    scores: Scores = columns[classes, np.arange(len(coins))] - columns.mean(0)
    return scores
