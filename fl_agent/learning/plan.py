"""The plan of a training run: all that is agreed before the first round (McMahan et al. 2017, arXiv 1602.05629).

The coordinator proposes it, each site's policy judges it, and every round's header is bound to its hash. One plan has
one spelling: sorted JSON without spaces.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicom_node.core.errors import ProtocolError
from dicom_node.core.settings import Population
from secure_infer.card import CLASSES, TrunkSetup, Version

from ..secagg.header import Mode

#: Modes by their names in plans and settings.
MODES: Final = {"site": Mode.SITE, "distributed": Mode.DISTRIBUTED}
#: No plan that we write is longer.
LARGEST_PLAN: Final = 1 << 20

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Weight = Annotated[float, Field(gt=0, le=100)]
Noise = Annotated[float, Field(ge=1e-6, le=1e6)]  # whose square the accountant still divides by
Attempts = Annotated[int, Field(ge=1, le=1_000_000)]
SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]


class Terms(BaseModel):
    """Base of the parts of a plan: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Member(Terms):
    """A hospital of the cohort."""

    name: SiteName = Field(description="what people and the courier call it")
    identity: Key = Field(description="its Ed25519 public key, hexadecimal")
    patients: int = Field(ge=1, le=10_000_000, description="about how many patients it has; public, agreed beforehand")


class Centre(Terms):
    """The first sum: the mean feature, by which the head's inputs are centred, and perhaps what they are scaled by."""

    noise_multiplier: Noise = Field(description="standard deviation of the noise over the norm of one patient's vector")
    attempts: Attempts = Field(description="how often a site contributes at most")
    squares: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="to scale each feature by its deviation, too: largest norm of a patient's squares",
    )


class Descent(Terms):
    """The sums that follow: gradients, or what local steps changed."""

    rounds: Attempts = Field(description="sums that the model needs")
    attempts: Attempts = Field(description="how often a site contributes at most; what exceeds rounds pays for repeats")
    local_steps: int = Field(default=1, ge=1, le=1000, description="steps at the site for each sum (mode site)")
    sampling_rate: float = Field(default=1.0, gt=0, le=1, description="probability that a patient takes part in a step")
    clip: float = Field(gt=0, le=1e6, description="largest Euclidean norm of one patient's gradient")
    noise_multiplier: Noise = Field(description="standard deviation of the noise over the norm of one patient's vector")
    learning_rate: float = Field(gt=0, le=1e6)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of the coordinator's steps")
    schedule: Literal["constant", "cosine", "linear"] = Field(default="constant", description="of the learning rate")
    averaged: float = Field(default=0.5, ge=0, le=1, description="share of the last rounds whose weights are averaged")
    ema: float = Field(default=0.9, ge=0, lt=1, description="decay of the moving average of the weights")
    published: Literal["average", "ema", "best", "last"] = Field(
        default="average", description="which weights become the model; best is by the noised loss"
    )
    patience: int = Field(
        default=0, ge=0, le=1_000_000, description="end after so many rounds without a lower noised loss; 0: never"
    )
    class_weights: tuple[Weight, Weight, Weight] = Field(default=(1.0, 1.0, 1.0), description="of each class's loss")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.attempts < self.rounds:
            raise ValueError("attempts must not be below rounds")
        if self.patience and self.published == "average":
            raise ValueError("a run that may end early has no last rounds to average: publish best, ema or last")
        return self


class Plan(Terms):
    """A run."""

    format: Literal[1] = 1
    run: str = Field(pattern=r"^[0-9a-f]{32}$", description="names the run; random, never used again")
    version: Version = Field(description="version of the model that comes of it")
    network: Literal["head"] = Field(default="head", description="what is trained: a head on the public trunk")
    trunk: TrunkSetup = Field(description="what stands before the head, the same at every site")
    views: tuple[str, ...] = Field(min_length=1, description="how each image is seen")
    channels: int = Field(ge=1, le=1 << 20, description="of the features")
    population: Population | None = Field(
        default=None, description="whose images sites select; none: each site's own rules alone"
    )
    members: tuple[Member, ...] = Field(min_length=3, max_length=1000, description="ascending by identity")
    mode: Literal["site", "distributed"] = Field(description="who adds the noise: each site all of it, or a share")
    honest: int = Field(ge=0, description="hospitals whose shares of noise reach the multipliers (distributed)")
    bits: int = Field(default=32, description="of the ring that sums are taken in")
    resolution: int = Field(ge=1, le=1 << 28, description="steps of the ring to the norm of one patient's vector")
    delta: float = Field(gt=0, lt=1, description="of the epsilon that is claimed")
    metrics_weight: float = Field(
        default=0.2, ge=0, le=10, description="norm of a patient's metrics beside that of the gradient; 0: no metrics"
    )
    centre: Centre | None = Field(default=None, description="none: the features are taken as they are")
    descent: Descent

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        identities, names = [one.identity for one in self.members], {one.name for one in self.members}
        if sorted(set(identities)) != identities or len(names) != len(identities):
            raise ValueError("members stand ascending by identity, each name and identity once")
        if (self.mode == "distributed") != (self.honest > 0) or self.honest > len(self.members):
            raise ValueError("honest hospitals are counted in mode distributed alone")
        if self.mode == "distributed" and self.descent.local_steps != 1:
            raise ValueError("mode distributed takes a sum for every step")
        if (self.descent.published == "best" or self.descent.patience) and not self.metrics_weight:
            raise ValueError("the best round, and an early end, are found by metrics, and the plan has none")
        return self

    @property
    def outputs(self) -> int:
        """Numbers that the network gives."""
        return len(CLASSES)

    @property
    def dimension(self) -> int:
        """Trained parameters: a row of weights for each class, and its bias."""
        return self.outputs * (self.channels + 1)

    @property
    def sums(self) -> int:
        """Secure sums that lead to the model."""
        return self.descent.rounds + (self.centre is not None)

    @property
    def content(self) -> bytes:
        """The canonical bytes."""
        return _canonical(self)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return hashlib.sha256(self.content).digest()

    @classmethod
    def read(cls, content: bytes) -> Plan:
        """Read canonical bytes.

        Raises
        ------
        ProtocolError
            They are no plan, or not in the canonical spelling (``malformed-plan``).
        """
        try:
            if len(content) > LARGEST_PLAN:
                raise ValueError("a plan of an impossible length")
            plan = cls.model_validate_json(content)
        except (ValidationError, ValueError) as error:
            raise _malformed() from error
        if plan.content != content:
            raise _malformed()
        return plan

    def member(self, identity: bytes) -> Member:
        """Look a member up by its raw key; KeyError where it is none."""
        return {one.identity: one for one in self.members}[identity.hex()]


@lru_cache(maxsize=256)  # and no cached property, which `model_copy` would copy
def _canonical(plan: Plan) -> bytes:
    dumped = plan.model_dump(mode="json")
    return json.dumps(dumped, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _malformed() -> ProtocolError:
    return ProtocolError("a plan that this version does not write came; compare the versions", code="malformed-plan")
