"""Features that are drawn and belong to nobody: three classes round three directions, for trials without data."""

from __future__ import annotations

import numpy as np

from ..learning.site import Examples


def draw(patients: int, channels: int, seed: int, *, spread: float = 1.0) -> Examples:
    """Draw patients with one to three images of two views each, not in order.

    Parameters
    ----------
    patients, channels : int
    seed : int
        Of the patients; the classes' directions depend on `channels` alone.
    spread : float
        Standard deviation round a direction whose coordinates are standard normal.
    """
    kinds = np.random.default_rng(5).normal(size=(3, channels))
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(patients), rng.integers(1, 4, patients)))
    labels = np.arange(patients) % 3
    features = kinds[labels[owners]][:, None] + spread * rng.normal(size=(len(owners), 2, channels))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    return Examples(features.astype(np.float32), labels[owners], owners)
