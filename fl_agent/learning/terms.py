"""What a plan costs each patient, and the header of each of its rounds: both follow from the plan alone.

A site derives the header for itself and takes part only in a round whose header is that one, byte for byte; so no term
of a round can differ from what its policy accepted and its ledger reserved.

Units: a patient's vector is the clipped gradient over the clip, so its norm is 1, with the metrics behind it, whose
norm is `metrics_weight`. Both get the same noise, so one Gaussian mechanism covers the whole vector.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from dicom_node.core.errors import ConfigError, ProtocolError
from secure_infer.card import Distributed, Mechanism

from ..ledger import accountant
from ..ledger.mechanisms import Spending
from ..secagg.encode import finest_step
from ..secagg.header import LARGEST_VARIANCE, NOISE_MARGIN, Block, Header, PrivacyTerms, least_threshold
from ..secagg.noise import rows_limit
from . import metrics
from .plan import MODES, Plan

MEAN, DESCENT, METRICS = "mean feature", "head", "metrics"
#: Largest coordinate of a weighted update in mode SITE; at 32 bits its step is below 1e-6.
LARGEST_UPDATE: Final = 256.0
#: Fineness beyond which a resolution changes nothing.
FINEST: Final = 1 << 16
DOMAIN: Final = b"VeilRay federated state 1\n"


@dataclass(frozen=True)
class Release:
    """One kind of sum.

    Attributes
    ----------
    name : str
        `MEAN` or `DESCENT`.
    lengths : tuple of int
        Of the blocks: the vector, and the metrics where there are any; or mean, squares and count.
    norm : float
        Largest Euclidean norm of one patient's row.
    attempts : int
        How often a site contributes at most.
    sampling_rate, noise_multiplier : float
    """

    name: str
    lengths: tuple[int, ...]
    norm: float
    attempts: int
    sampling_rate: float
    noise_multiplier: float

    @property
    def dimension(self) -> int:
        """Coordinates of all blocks."""
        return sum(self.lengths)


@lru_cache(maxsize=64)
def releases(plan: Plan) -> tuple[Release, ...]:
    """List the kinds of sums of a plan, in the order in which they run."""
    found = []
    if plan.centre is not None:
        moments = (plan.channels,) if plan.centre.squares is None else (plan.channels, plan.channels, 1)
        # Of each block, a patient's part has norm 1 at most.
        norm, noise = math.sqrt(len(moments)), plan.centre.noise_multiplier
        found.append(Release(MEAN, moments, norm, plan.centre.attempts, 1.0, noise))
    descent = plan.descent
    lengths = (plan.dimension, *([metrics.LENGTH] if plan.metrics_weight else []))
    norm = math.hypot(1.0, plan.metrics_weight)
    found.append(
        Release(DESCENT, lengths, norm, descent.attempts, descent.sampling_rate, descent.noise_multiplier)
    )  # fmt: skip
    return tuple(found)


def release_at(plan: Plan, done: int) -> Release:
    """Return what the next sum is once `done` sums are known."""
    return releases(plan)[0 if plan.centre is not None and done == 0 else -1]


def sensitivity_squared(plan: Plan, release: Release) -> int:
    """Bound how far, squared, one patient moves a site's integers, in steps squared (mode DISTRIBUTED)."""
    return rows_limit(plan.resolution, release.dimension)


def variance(plan: Plan, release: Release) -> int:
    """Return the variance of each hospital's draw, in steps squared, with which `honest` of them reach the noise."""
    return math.ceil(release.noise_multiplier**2 * sensitivity_squared(plan, release) / plan.honest)


def metrics_noise(plan: Plan) -> float:
    """Return the noise multiplier of the metrics in mode SITE, where they are a release of their own."""
    return plan.descent.noise_multiplier / plan.metrics_weight


def spendings(
    plan: Plan, release: Release, patients: int | None = None, attempts: int | None = None
) -> tuple[Spending, ...]:
    """Describe, for the ledger and the card, what contributions to one kind of sum do to a site's patients.

    Parameters
    ----------
    plan : Plan
    release : Release
    patients : int, optional
        Of the site, which its ledger asks for and a card never tells.
    attempts : int, optional
        Contributions; as many as the plan allows where absent.
    """
    times = release.attempts if attempts is None else attempts
    if plan.mode == "distributed":
        return (
            Distributed(
                name=release.name,
                patients=patients,
                sampling_rate=release.sampling_rate,
                steps=times,
                variance=variance(plan, release),
                honest=plan.honest,
                dimension=release.dimension,
                sensitivity_squared=sensitivity_squared(plan, release),
            ),
        )

    def mechanism(name: str, kind: str, steps: int, noise: float, clip: float, rate: float) -> Mechanism:
        return Mechanism.model_validate(
            {
                "name": name, "partition": "training patients", "kind": kind, "patients": patients, "steps": steps,
                "sampling_rate": rate, "noise_multiplier": noise, "clip": clip,
            }
        )  # fmt: skip

    if release.name == MEAN:
        return (mechanism(MEAN, "Gaussian", times, release.noise_multiplier, release.norm, 1.0),)
    steps, clip = times * plan.descent.local_steps, plan.descent.clip
    found = [mechanism(DESCENT, "DP-SGD", steps, release.noise_multiplier, clip, release.sampling_rate)]
    if plan.metrics_weight:
        found.append(mechanism(METRICS, "Gaussian", times, metrics_noise(plan), metrics.NORM, 1.0))
    return tuple(found)


@dataclass(frozen=True)
class Epsilons:
    """What a run costs one patient.

    Attributes
    ----------
    claimed : float
        With as many honest hospitals as the plan counts on; in mode SITE with none besides the patient's own.
    alone : float
        If every other hospital colludes.
    """

    claimed: float
    alone: float


@lru_cache(maxsize=4096)
def epsilons(plan: Plan, attempts: tuple[int, ...] | None = None, delta: float | None = None) -> Epsilons:
    """Account a run.

    Parameters
    ----------
    plan : Plan
    attempts : tuple of int, optional
        Contributions to each of `releases`; as many as the plan allows where absent.
    delta : float, optional
        The plan's where absent.
    """
    kinds = releases(plan)
    times = [one.attempts for one in kinds] if attempts is None else list(attempts)
    spent = [
        spending
        for release, count in zip(kinds, times, strict=True)
        if count
        for spending in spendings(plan, release, attempts=count)
    ]
    claimed, alone = (
        accountant.total(accountant.loss(one, alone=colluding) for one in spent).planned(delta or plan.delta)
        for colluding in (False, True)
    )
    return Epsilons(claimed, alone)


def composed(plan: Plan, runs: int) -> Epsilons:
    """Account so many runs on these terms, each with all the contributions that it allows."""
    return epsilons(plan, tuple(runs * one.attempts for one in releases(plan)))


def calibrated(plan: Plan, epsilon: float, runs: int = 1) -> Plan:
    """Give the descent the least noise with which the claim of the plan, or of several like it, is at most `epsilon`.

    Raises
    ------
    ConfigError
        The sums besides the descent, or the resolution, leave no room for that (``epsilon``).
    """

    def with_noise(multiplier: float) -> Plan:
        descent = plan.descent.model_copy(update={"noise_multiplier": multiplier})
        return plan.model_copy(update={"descent": descent})

    def within(multiplier: float) -> bool:
        return composed(with_noise(multiplier), runs).claimed <= epsilon

    low, high = 0.0, 1.0
    while not within(high):
        low, high = high, 2 * high
        if high > 1e5:
            raise ConfigError(f"epsilon {epsilon:g} cannot be met: take fewer rounds or more noise", code="epsilon")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return with_noise(math.ceil(high * 1000) / 1000)


def finest_resolution(plan: Plan) -> int:
    """Return the finest resolution, a power of two, with which the whole cohort's sums stay in the ring.

    Raises
    ------
    ConfigError
        None does: the ring needs more bits (``resolution``).
    """
    found = FINEST
    while found >= 1:
        tried = plan.model_copy(update={"resolution": found})
        size = len(plan.members)
        worst = size * (math.ceil(_capacity(plan) * found) + 1)
        if plan.mode == "distributed":
            drawn = max(variance(tried, one) for one in releases(tried))
            worst += NOISE_MARGIN * (math.isqrt(size * drawn) + 1) if drawn <= LARGEST_VARIANCE else 1 << plan.bits
        if worst < 1 << (plan.bits - 1):
            return found
        found //= 2
    raise ConfigError("no sum of so many patients fits the ring: take more bits", code="resolution")


def _capacity(plan: Plan) -> float:
    """Largest coordinate of one hospital's sum, in norms; clipping to it never moves two sums apart."""
    return float(max(one.patients for one in plan.members))


def least_cohort(plan: Plan) -> int:
    """Return the threshold of every round of a plan, whoever is asked: above two thirds of ALL members.

    Were it two thirds of those who are asked, a coordinator would ask few hospitals of which its friends are a third,
    though they are less than that of the members: two sets of survivors could be signed, and of the noise that the
    claim counts on only some would be there.
    """
    return least_threshold(len(plan.members))


def model_hash(plan: Plan, state: bytes) -> bytes:
    """Name what a round is relative to: the plan, and the bytes of the state."""
    return hashlib.sha256(DOMAIN + plan.digest + hashlib.sha256(state).digest()).digest()


def header(plan: Plan, done: int, state: bytes, number: int, cohort: Sequence[bytes]) -> Header:
    """Write the terms of a round.

    Parameters
    ----------
    plan : Plan
    done : int
        Sums known before it, which the state says.
    state : bytes
        The encoded state.
    number : int
        Of the round, from 1; a fault costs a number, so it may run ahead of `done`.
    cohort : sequence of bytes
        Raw identities of the members that are asked.

    Raises
    ------
    ProtocolError
        These terms are impossible, or the cohort is too small (``cohort-too-small``): see `least_cohort`.
    """
    release, size = release_at(plan, done), len(cohort)
    if size < least_cohort(plan):
        raise ProtocolError(
            f"a cohort of {size} is below the {least_cohort(plan)} that a plan of {len(plan.members)} hospitals needs",
            code="cohort-too-small",
        )
    epsilon = epsilons(plan).claimed
    if plan.mode == "distributed":
        step = release.norm / plan.resolution
        drawn = variance(plan, release)
        blocks = tuple(Block(length, _capacity(plan) * release.norm, step, drawn) for length in release.lengths)
    else:
        if release.name == MEAN:
            clips = [_noised_capacity(plan, release.norm, release.noise_multiplier)] * len(release.lengths)
        else:
            clips = [LARGEST_UPDATE]
            if plan.metrics_weight:
                clips.append(_noised_capacity(plan, metrics.NORM, metrics_noise(plan)))
        pairs = zip(release.lengths, clips, strict=True)
        blocks = tuple(Block(length, clip, finest_step(size, plan.bits, clip)) for length, clip in pairs)
    return Header(
        run=bytes.fromhex(plan.run),
        round=number,
        model=model_hash(plan, state),
        cohort=tuple(sorted(cohort)),
        threshold=least_cohort(plan),
        bits=plan.bits,
        blocks=blocks,
        privacy=PrivacyTerms(
            mode=MODES[plan.mode],
            honest=plan.honest,
            norm=release.norm,
            noise_multiplier=release.noise_multiplier,
            sampling_rate=release.sampling_rate,
            steps=release.attempts * (plan.descent.local_steps if release.name == DESCENT else 1),
            epsilon=epsilon,
            delta=plan.delta,
        ),
    )


def _noised_capacity(plan: Plan, norm: float, noise: float) -> float:
    return norm * (_capacity(plan) + NOISE_MARGIN * noise)
