"""What mechanisms cost in privacy, and how much noise a budget takes (Gopi et al. 2021, arXiv 2106.02848)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from opacus.accountants import PRVAccountant

from dicom_node.core.errors import ConfigError
from secure_infer.card import Mechanism

from .train import Recipe


def release_of(name: str, partition: str, patients: int, noise: float) -> Mechanism:
    """Describe one release of a mean of vectors clipped to norm 1."""
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


def descent_of(name: str, partition: str, patients: int, recipe: Recipe) -> Mechanism:
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


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Upper bound of epsilon of everything that the mechanisms published (Gopi et al. 2021, arXiv 2106.02848).

    Mechanisms on one partition compose; partitions share no patient, so over partitions the largest counts (parallel
    composition, McSherry 2009).
    """
    return max(
        _bound(
            tuple(
                (one.noise_multiplier, one.sampling_rate, one.steps) for one in mechanisms if one.partition == partition
            ),
            delta,
        )
        for partition in {mechanism.partition for mechanism in mechanisms}
    )


@lru_cache(maxsize=4096)
def _bound(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Bound epsilon of one partition; remembered, for sites of any size ask the same while they choose their noise."""
    accountant = PRVAccountant()
    accountant.history = list(history)
    # At sampling rate 1 Opacus takes the logarithm of 1 - q = 0, whose limit, minus infinity, is what it needs.
    # Its RDP bound, whose advice is silenced, serves only to size the grid.
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the largest alpha", UserWarning)
        return float(accountant.get_epsilon(delta=delta))


def noise_for(target: float, delta: float, mechanism: Mechanism, beside: Sequence[Mechanism] = ()) -> Mechanism:
    """Give a mechanism the least noise that keeps its partition within `target`.

    Parameters
    ----------
    target, delta : float
        The budget.
    mechanism : Mechanism
        Its noise multiplier is not read. Where it does not tell its patients, each site's ledger judges delta.
    beside : sequence of Mechanism
        What else runs on the same partition.

    Raises
    ------
    ConfigError
        Delta is so large that publishing one patient whole would satisfy it, or the budget cannot be met.
    """
    if mechanism.patients is not None and delta >= 1 / mechanism.patients:
        raise ConfigError(f"delta must be below 1 / {mechanism.patients} patients", code="delta")

    def within(multiplier: float) -> bool:
        tried = mechanism.model_copy(update={"noise_multiplier": multiplier})
        return epsilon([tried, *beside], delta) <= target

    # Near epsilon 3 already: far below it the accountant's grid, and its time, grow without bound.
    low = high = max(0.5, mechanism.sampling_rate * mechanism.steps**0.5)
    while not within(high):
        low, high = high, high * 2
        if high > 1e5:
            raise ConfigError(f"epsilon {target} cannot be met with these mechanisms", code="epsilon")
    while low == high or within(low):
        low, high = low / 2, min(low, high)
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return mechanism.model_copy(update={"noise_multiplier": round(high + 5e-4, 3)})
