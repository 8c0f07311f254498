"""What a site contributes to training with other hospitals: the section [training] of site.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .section import Section

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PrivacySettings(Section):
    """What training may cost each patient over the life of this site."""

    epsilon: float = Field(
        default=8.0, gt=0, description="largest epsilon over all runs, models and searches, peers as honest as agreed"
    )
    epsilon_alone: float | None = Field(
        default=None, gt=0, description="largest epsilon if every other hospital colludes; only shown when absent"
    )
    delta: float = Field(default=1e-5, gt=0, le=1e-3, description="delta of both; below 1 / patients")


class HandoverSettings(Section):
    """When a model that the consortium made may answer here."""

    publisher: str = Field(
        default="",
        pattern=r"^(?:[0-9a-f]{64})?$",
        description="Ed25519 public key, hexadecimal, that signs candidates; one of inference.trusted_publishers",
    )
    acceptance: Literal["operator", "policy"] = Field(
        default="operator", description="who accepts a candidate: a person, or the two rules below"
    )
    maximal_auc_drop: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="how far below the active model's pneumonia AUC the lower end of the 95 % interval may lie",
    )
    minimal_patients: int = Field(
        default=30, ge=1, description="labelled patients that the comparison needs, of ill and of healthy ones each"
    )


class FederationSettings(Section):
    """What this site allows in training with other hospitals, whatever the coordinator proposes."""

    identity_file: Path = Field(description="this site's Ed25519 key (PEM, mode 0600), made at first use")
    coordinator: Key = Field(description="the coordinator's public key, hexadecimal")
    roster: tuple[Key, ...] = Field(description="public keys of the hospitals that may be in a cohort with this one")
    minimum_cohort: int = Field(
        default=5, ge=3, description="hospitals at least; with 3, two who collude learn the third's update"
    )
    minimum_patients: int = Field(default=100, ge=1, description="patients of this site who must agree, at least")
    maximal_epsilon: float = Field(default=3.0, gt=0, description="largest epsilon of one run, at the delta above")
    maximal_epsilon_alone: float | None = Field(
        default=None, gt=0, description="largest epsilon of one run if every other hospital colludes"
    )
    modes: tuple[Literal["site", "distributed"], ...] = Field(
        default=("site", "distributed"), description="who may add the noise: this site all of it, or its share"
    )
    plans: tuple[Key, ...] = Field(default=(), description="hashes of the plans that are allowed; any when empty")
    socket: Path | None = Field(
        default=None, description="Unix socket at which the courier brings frames; agent.sock in state_dir when absent"
    )
    socket_group: str | None = Field(default=None, description="group whose members may bring frames")


class TrainingSettings(Section):
    """What this site contributes to training with other hospitals."""

    key_file: Path | None = Field(
        default=None,
        description="secret behind all pseudonyms, mode 0600, made at first use; training.key in state_dir when absent",
    )
    issuer: str = Field(
        default="",
        max_length=64,
        description="Issuer of Patient ID (0010,0021) that is meant where an image or a list names none",
    )
    films: Path | None = Field(
        default=None,
        description="folder of films (PNG, JPEG, NIfTI) of more patients, all of whom agreed; for research sites",
    )
    privacy: PrivacySettings = Field(default=PrivacySettings(), description="the budget of the site's patients")
    handover: HandoverSettings = Field(
        default=HandoverSettings(), description="when a model that the consortium made may answer here"
    )
    federation: FederationSettings | None = Field(default=None, description="none where this site trains with nobody")
