"""From a budget to a plan: the noise, resolution and honest hospitals that follow from what a person chooses."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dicom_node.core.settings import Population
from secure_infer.card import TrunkSetup

from ..head import MEAN_NOISE, RECIPE
from ..secagg.header import least_threshold
from .plan import Centre, Descent, Member, Plan
from .terms import calibrated, finest_resolution

#: Stands where `calibrated` will put the noise.
UNKNOWN: Final = 1.0


@dataclass(frozen=True)
class Budget:
    """What a run may cost each patient, and who adds the noise.

    Attributes
    ----------
    epsilon, delta : float
        Delta below 1 / patients of every site.
    mode : {"site", "distributed"}
    honest : int or None
        Hospitals that the claim counts on in mode DISTRIBUTED; `assumed_honest` where absent.
    runs : int
        Runs on the same terms that share the budget, as the trials of a search do.
    """

    epsilon: float
    delta: float
    mode: Literal["site", "distributed"]
    honest: int | None = None
    runs: int = 1


@dataclass(frozen=True)
class Features:
    """What the head sees: the trunk, views of an image, and how many numbers they give."""

    trunk: TrunkSetup
    views: tuple[str, ...]
    channels: int


def default_descent(rounds: int = RECIPE.steps, spare: int = 0, **changes: object) -> Descent:
    """Return the recipe of the central training as secure sums; its noise is for `propose` to choose.

    Parameters
    ----------
    rounds : int
    spare : int
        Contributions beyond them, for rounds that fail after hospitals contributed; they cost budget.
    **changes
        Other fields of `Descent`.
    """
    fields: dict[str, object] = {
        "rounds": rounds, "attempts": rounds + spare, "noise_multiplier": UNKNOWN, "clip": RECIPE.clip,
        "sampling_rate": RECIPE.sampling_rate, "learning_rate": RECIPE.learning_rate, "momentum": RECIPE.momentum,
        "averaged": RECIPE.averaged,
    }  # fmt: skip
    return Descent.model_validate({**fields, **changes})


def assumed_honest(size: int) -> int:
    """Return how many honest survivors a round has where fewer than a third of the cohort collude.

    It is the assumption under which secure aggregation hides a single update, too.
    """
    return least_threshold(size) - (size - 1) // 3


def propose(
    version: str,
    members: Sequence[Member],
    features: Features,
    budget: Budget,
    descent: Descent,
    *,
    centre_noise: float | None = MEAN_NOISE,
    squares: float | None = None,
    metrics_weight: float = 0.2,
    population: Population | None = None,
    run: bytes | None = None,
) -> Plan:
    """Write a plan whose claim is within a budget, with those of all runs that share it.

    Parameters
    ----------
    version : str
        Of the model.
    members : sequence of Member
    features : Features
    budget : Budget
    descent : Descent
        Its noise multiplier is not read.
    centre_noise : float or None
        Noise of the mean feature; None leaves features uncentred.
    squares : float or None
        See `Centre`; read only where there is a centre.
    metrics_weight : float
        See `Plan`.
    population : Population, optional
        Whose images sites select.
    run : bytes, optional
        16 bytes; random where absent.

    Raises
    ------
    ConfigError
        No noise meets the budget (``epsilon``), or the ring is too small (``resolution``).
    """
    distributed = budget.mode == "distributed"
    honest = (budget.honest or assumed_honest(len(members))) if distributed else 0
    centre = None
    if centre_noise is not None:
        spare = min(1, descent.attempts - descent.rounds)
        centre = Centre(noise_multiplier=centre_noise, attempts=1 + spare, squares=squares)
    plan = Plan(
        run=(run or secrets.token_bytes(16)).hex(),
        version=version,
        trunk=features.trunk,
        views=features.views,
        channels=features.channels,
        population=population,
        members=tuple(sorted(members, key=lambda one: one.identity)),
        mode=budget.mode,
        honest=honest,
        resolution=1,
        delta=budget.delta,
        metrics_weight=metrics_weight,
        centre=centre,
        descent=descent,
    )
    # The resolution takes part in the sensitivity, and the noise in the headroom: twice round is enough, for a finer
    # resolution only lowers the noise that is needed.
    for _ in range(2):
        plan = calibrated(plan.model_copy(update={"resolution": finest_resolution(plan)}), budget.epsilon, budget.runs)
    return Plan.read(plan.content)  # model_copy does not check
