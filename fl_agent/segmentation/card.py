"""The card of a segmentation model (after Mitchell et al. 2019): what `ModelCard` cannot say, signed likewise.

A classifier's card has classes, a calibration and an operating point for its answer, and a segmentation has none of
these. This card has the same private program and the same account of privacy. Its signature is over another domain, so
no model store of the inference takes it for a classifier, whoever signed it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from dicom_node.core.errors import ConfigError, IntegrityError
from secure_infer.card import Figure, Privacy, Sha256, Version
from secure_infer.models import CARD, SIGNATURE, WEIGHTS, Weights, public_hex
from secure_infer.program import Part, Program, tensor_shapes

DOMAIN: Final = b"VeilRay segmentation card 1\n"


class SegmentationCard(Part):
    """All that is public about one version of a segmentation model."""

    task: Literal["segmentation"] = "segmentation"
    name: str = Field(min_length=1, max_length=64, description="name of the model")
    version: Version = Field(description="version; never used again for other weights")
    intended_use: str = Field(description="what the model is for, one sentence")
    side: int = Field(ge=8, le=1024, description="rows and columns of the picture, aspect ratio not kept")
    offset: float = Field(description="taken from the grey value 0..255")
    divisor: float = Field(gt=0, description="then divided by this")
    program: Program = Field(description="private part: its shapes alone")
    scale: int = Field(ge=1, le=64, description="pixels that the output's channels stand for, in each direction")
    threshold: float = Field(description="logit from which a pixel counts as opaque")
    weights_sha256: Sha256 = Field(description="SHA-256 of weights.safetensors, which only the owner holds")
    data: str = Field(description="training and test data")
    privacy: Privacy = Field(description="differential privacy of the training")
    figures: tuple[Figure, ...] = Field(description="on patients who were set aside, evaluated once")
    limits: tuple[str, ...] = Field(min_length=1, description="what the model cannot do")

    def canonical(self) -> bytes:
        """Write the card as the bytes that are hashed and signed, spelt as `ModelCard.canonical` does."""
        content = self.model_dump(mode="json", exclude_none=True)
        return (json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def publish(folder: Path, card: SegmentationCard, weights: bytes, key: Ed25519PrivateKey) -> None:
    """Write card, signature and weights into a new folder of the version's name.

    Raises
    ------
    ConfigError
        The version is there (``published``).
    """
    target = folder / card.version
    if target.exists():
        raise ConfigError(f"model {card.version} is already in {folder}: a version never changes", code="published")
    target.mkdir(parents=True)
    written = card.canonical()
    (target / CARD).write_bytes(written)
    (target / WEIGHTS).write_bytes(weights)
    # Last, so a folder whose writing was cut short is no model.
    (target / SIGNATURE).write_text(f"{public_hex(key)}\n{key.sign(DOMAIN + written).hex()}\n")


def read(folder: Path, publisher: str) -> tuple[SegmentationCard, Weights]:
    """Verify a published version and read it.

    Parameters
    ----------
    folder : Path
        Of the version.
    publisher : str
        The Ed25519 public key, hexadecimal, whose signature is accepted.

    Raises
    ------
    IntegrityError
        Signature, card or weights are not what that publisher signed (``model-signature``, ``model-weights``).
    """
    try:
        written, weights = (folder / CARD).read_bytes(), (folder / WEIGHTS).read_bytes()
        _, signature = (folder / SIGNATURE).read_text().split()
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(publisher)).verify(bytes.fromhex(signature), DOMAIN + written)
        card = SegmentationCard.model_validate_json(written)
    except (OSError, ValueError, InvalidSignature, ValidationError) as error:
        raise IntegrityError(f"model {folder.name} is not what its publisher signed", code="model-signature") from error
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise IntegrityError(f"the weights of model {folder.name} are malformed", code="model-weights") from error
    shapes = {name: one.shape for name, one in tensors.items()}
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256 or shapes != tensor_shapes(card.program):
        raise IntegrityError(f"the weights of model {folder.name} are not those of its card", code="model-weights")
    return card, {name: one.astype("float64") for name, one in tensors.items()}
