"""The coordinator's settings file: who takes part, what is trained on which terms, and how long to wait."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dicom_node.core.section import Section
from dicom_node.core.settings import LogSettings, Population
from secure_infer.card import TrunkSetup, Version

from ..head import MEAN_NOISE, RECIPE, SETUP, VIEWS
from ..learning.plan import Key, Member, SiteName
from .patience import Timing

Positive = Annotated[float, Field(gt=0)]


class MemberSettings(Section):
    """A hospital."""

    name: SiteName = Field(description="short name, the same as in its start-up kit")
    identity: Key = Field(description="its public key, hexadecimal, as `fl-agent identity` prints it there")
    patients: int = Field(ge=1, description="about how many patients it has; public, and what it is weighted by")
    socket: Path | None = Field(default=None, description="its agent's Unix socket, where courier is local")

    def member(self) -> Member:
        """Return it as plans name it."""
        return Member(name=self.name, identity=self.identity, patients=self.patients)


class RunSettings(Section):
    """What is trained, and on which terms; the noise follows."""

    version: Version = Field(description="version of the model; never used again")
    epsilon: Positive = Field(default=3.0, description="budget of one patient for the whole run")
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="delta; below 1 / patients of every hospital, and at most what the hospitals judge by",
    )
    mode: Literal["site", "distributed"] = Field(
        default="distributed", description="who adds the noise: each hospital all of it, or a share"
    )
    honest: int | None = Field(
        default=None,
        ge=1,
        description="hospitals whose shares epsilon counts on; absent: all survivors but a third of the cohort",
    )
    rounds: int = Field(default=RECIPE.steps, ge=1, description="secure sums of the descent")
    spare: int = Field(default=4, ge=0, description="contributions reserved beyond them, for rounds that are repeated")
    local_steps: int = Field(default=1, ge=1, description="steps at the hospital for each sum, in mode site")
    sampling_rate: float = Field(default=1.0, gt=0, le=1, description="probability that a patient is in a step")
    clip: Positive = Field(default=RECIPE.clip, description="largest norm of one patient's gradient")
    learning_rate: Positive = Field(default=RECIPE.learning_rate, description="of the descent")
    momentum: float = Field(default=RECIPE.momentum, ge=0, lt=1, description="of the coordinator's steps")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="of the learning rate over the rounds"
    )
    averaged: float = Field(default=0.5, ge=0, le=1, description="share of the last rounds whose weights are averaged")
    published: Literal["average", "ema", "best", "last"] = Field(
        default="average", description="which weights become the model; best is by the noised loss"
    )
    ema: float = Field(default=0.9, ge=0, lt=1, description="decay of the weights' moving average, for published = ema")
    patience: int = Field(
        default=0, ge=0, description="end after so many rounds without a lower noised loss; 0: never; not for average"
    )
    class_weights: tuple[Positive, Positive, Positive] = Field(
        default=(1.0, 1.0, 1.0), description="of the losses of normal, bacterial and viral"
    )
    centre_noise: Positive = Field(default=MEAN_NOISE, description="noise multiplier of the mean feature")
    squares: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="to scale each feature by its deviation, too: largest norm of a patient's squares",
    )
    metrics_weight: float = Field(default=0.2, ge=0, description="norm of a patient's metrics beside the gradient's")
    trunk: TrunkSetup = Field(default=SETUP, description="what stands before the head, the same at every hospital")
    views: tuple[str, ...] = Field(default=VIEWS, description="how each image is seen: plain, mirrored, or both")

    def descent(self) -> dict[str, Any]:
        """Return the fields that a plan's descent takes over."""
        names = {
            "local_steps", "sampling_rate", "clip", "learning_rate", "momentum", "schedule", "averaged", "published",
            "ema", "patience", "class_weights",
        }  # fmt: skip
        return self.model_dump(include=names)


class CourierSettings(Section):
    """How frames come to the hospitals."""

    kind: Literal["nvflare", "local"] = Field(
        default="nvflare", description="NVFlare's server on this machine, or agents on this machine (for trials)"
    )
    socket: Path | None = Field(default=None, description="where the coordinator's relay answers, for nvflare")


class TimingSettings(Section):
    """How long the coordinator waits, seconds."""

    stage_s: Positive = Field(default=30.0, description="for the answers of one stage")
    contribution_s: Positive = Field(default=600.0, description="for the stage in which hospitals compute")
    probe_s: Positive = Field(default=2.0, description="for the first stage, where one is asked that was silent before")
    joining_s: Positive = Field(default=600.0, description="for answers to the plan")

    def timing(self) -> Timing:
        """Return it as the coordinator takes it."""
        return Timing(self.stage_s, self.contribution_s, self.probe_s, self.joining_s)


class CoordinatorSettings(Section):
    """All of coordinator.toml."""

    state_dir: Path = Field(description="folder of the coordinator's database, its records and the models")
    key_file: Path = Field(description="the coordinator's Ed25519 key (PEM, mode 0600), made at first use")
    publisher_key_file: Path = Field(description="Ed25519 key that signs models (PEM, mode 0600), made at first use")
    members: tuple[MemberSettings, ...] = Field(description="the hospitals, three at least", min_length=3)
    population: Population = Field(description="whom the model is made for")
    run: RunSettings
    courier: CourierSettings = CourierSettings()
    timing: TimingSettings = TimingSettings()
    log: LogSettings = LogSettings()
