"""The model store: signed cards, hashed weights, and which version is active (Ed25519, RFC 8032; safetensors).

::

    models/
    ├── active                       the version in use, one line
    └── <version>/
        ├── card.json                public; signed byte for byte
        ├── signature                the publisher's public key and its signature, hexadecimal, one line each
        ├── retired                  empty; where it is, a party does not serve this version
        └── weights.safetensors      only where the model's owner holds it; a hospital has none

Every reading verifies first: an unsigned, altered or unknown byte is `IntegrityError`, never a warning.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dicom_node.core.errors import ConfigError, IntegrityError
from dicom_node.durable import sync_folder

from .card import CLASSES, ModelCard, TrunkCard
from .program import INPUT, ConvolutionLayer, Program, tensor_shapes

__all__ = [
    "CLASSES",
    "INPUT",
    "SHIPPED",
    "ConvolutionLayer",
    "ModelCard",
    "ModelStore",
    "Program",
    "TrunkCard",
    "encode_weights",
    "public_hex",
    "shipped_publisher",
    "signing_key",
]

#: The models that come with the program, weights included, for trials and tests.
SHIPPED = Path(__file__).parent / "shipped"
CARD, SIGNATURE, WEIGHTS, ACTIVE = "card.json", "signature", "weights.safetensors", "active"
RETIRED = "retired"
#: Keeps a signature on a card from meaning anything in another protocol that signs with the same key.
DOMAIN = b"VeilRay model card 1\n"
LARGEST_CARD = 1 << 20

Weights = dict[str, NDArray[np.float64]]


def shipped_publisher() -> str:
    """Read the public key, hexadecimal, whose signature the shipped models carry."""
    return (SHIPPED / "publisher").read_text().strip()


def public_hex(key: Ed25519PrivateKey) -> str:
    """Name a signing key by its public half: 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key (PKCS #8 PEM), or make one where the file does not exist.

    Raises
    ------
    ConfigError
        The file is not such a key, cannot be made or read, or its group or others may read it.
    """
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot make the key {path}: {error.strerror}", code="signing-key") from error
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pem)
        return key
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"the signing key {path} can be read by others: chmod 600 it", code="key-permissions")
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except PermissionError as error:
        raise ConfigError(f"the key {path} is another user's than who runs this", code="signing-key") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not an unencrypted PEM private key", code="signing-key") from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key", code="signing-key")
    return loaded


def encode_weights(weights: Mapping[str, NDArray[np.floating]]) -> bytes:
    """Write tensors as safetensors, float32; the same values give the same bytes."""
    return save({name: np.ascontiguousarray(weights[name], dtype=np.float32) for name in sorted(weights)})


class ModelStore:
    """A folder of models.

    Parameters
    ----------
    root : Path
        Holds one folder for each version.
    trusted_publishers : iterable of str
        Public keys, hexadecimal, whose cards are accepted besides the shipped publisher's.
    """

    def __init__(self, root: Path, trusted_publishers: Iterable[str] = ()) -> None:
        self._root = root
        self._trusted = frozenset({shipped_publisher(), *(key.lower() for key in trusted_publishers)})

    def versions(self) -> tuple[str, ...]:
        """Name all versions present, verified or not, in natural order (1.10 after 1.9)."""
        if not self._root.is_dir():
            return ()
        names = [folder.name for folder in self._root.iterdir() if (folder / CARD).is_file()]
        return tuple(sorted(names, key=_natural))

    def served(self) -> tuple[str, ...]:
        """Name the versions that are not retired."""
        return tuple(version for version in self.versions() if not (self._root / version / RETIRED).exists())

    def retire(self, version: str) -> None:
        """Mark a version as no longer served, durably; its files stay for the record.

        Raises
        ------
        ConfigError
            There is no such version.
        """
        folder = self._folder(version)
        (folder / RETIRED).touch()
        sync_folder(folder)

    def verify(self, version: str, trusted: Iterable[str] | None = None) -> ModelCard:
        """Check a version's signature, card and, where present, weights.

        Parameters
        ----------
        version : str
        trusted : iterable of str, optional
            Accept these publishers alone instead of the store's.

        Returns
        -------
        ModelCard

        Raises
        ------
        ConfigError
            There is no such version.
        IntegrityError
            Publisher unknown, signature wrong, card malformed or of another version, or weights with another hash or
            other shapes than the card's.
        """
        folder = self._folder(version)
        card = _read_card(folder, self._trusted if trusted is None else frozenset(trusted))
        if card.version != version:
            raise IntegrityError(f"folder {version} holds the card of version {card.version}", code="model-version")
        if (folder / WEIGHTS).exists():
            _read_weights(folder, card)
        return card

    def card(self, version: str) -> ModelCard:
        """Return a version's card, verified as by `verify`."""
        return self.verify(version)

    def weights(self, version: str) -> Weights:
        """Return a version's private tensors, verified; only their owner's store has them.

        Raises
        ------
        ConfigError
            This store has the card alone.
        IntegrityError
            See `verify`.
        """
        card = self.verify(version)
        folder = self._folder(version)
        if not (folder / WEIGHTS).exists():
            raise ConfigError(
                f"model {version} has no weights here: run them at their owner's party, or install them",
                code="no-weights",
            )
        return _read_weights(folder, card)

    def publish(self, card: ModelCard, weights: bytes, key: Ed25519PrivateKey) -> Path:
        """Sign a new version and put it into the store; it appears whole or not at all.

        Parameters
        ----------
        card : ModelCard
            With the hash of `weights`.
        weights : bytes
            From `encode_weights`.
        key : Ed25519PrivateKey
            The publisher's.

        Returns
        -------
        Path
            The version's folder.

        Raises
        ------
        ConfigError
            The version is already there: a version never changes.
        IntegrityError
            The weights are not those of the card.
        """
        _check_weights(weights, card)
        written = card.canonical()
        signature = f"{public_hex(key)}\n{key.sign(DOMAIN + written).hex()}\n".encode()
        return self._put(card.version, {CARD: written, SIGNATURE: signature, WEIGHTS: weights})

    def install(self, folder: Path, *, with_weights: bool = False) -> ModelCard:
        """Verify a published version elsewhere and copy it into this store.

        Parameters
        ----------
        folder : Path
            Holds card, signature and perhaps weights.
        with_weights : bool
            Copy the weights too: only at their owner, or where the site was given them.
        """
        card = _read_card(folder, self._trusted)
        content = {name: (folder / name).read_bytes() for name in (CARD, SIGNATURE)}
        if with_weights:
            _read_weights(folder, card)
            content[WEIGHTS] = (folder / WEIGHTS).read_bytes()
        self._put(card.version, content)
        return card

    def activate(self, version: str) -> None:
        """Make a version the one in use; the change is durable and atomic.

        Raises
        ------
        ConfigError, IntegrityError
            As `verify`; the active version stays.
        """
        self.verify(version)
        with tempfile.NamedTemporaryFile("w", dir=self._root, delete=False) as stream:
            stream.write(f"{version}\n")
            stream.flush()
            os.fsync(stream.fileno())
        Path(stream.name).replace(self._root / ACTIVE)
        sync_folder(self._root)

    def active(self) -> str:
        """Name the version in use: the activated one, else the only one.

        Raises
        ------
        ConfigError
            Nothing is activated and the store does not hold exactly one version.
        """
        marker = self._root / ACTIVE
        if marker.is_file():
            return marker.read_text().strip()
        found = self.versions()
        if len(found) != 1:
            raise ConfigError(f"{len(found)} models are installed and none is activated", code="no-active-model")
        return found[0]

    def is_active(self, version: str) -> bool:
        """Tell whether this version is the one in use."""
        marked = (self._root / ACTIVE).is_file()
        return self.active() == version if marked else self.versions() == (version,)

    def _folder(self, version: str) -> Path:
        if version not in self.versions():
            raise ConfigError(f"model {version!r} is not installed in {self._root}", code="unknown-model")
        return self._root / version

    def _put(self, version: str, content: Mapping[str, bytes]) -> Path:
        target = self._root / version
        if target.exists():
            raise ConfigError(f"model {version} is already in {self._root}: a version never changes", code="published")
        self._root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=self._root, prefix=".new-"))
        try:
            for name, data in content.items():
                with (staging / name).open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            staging.chmod(0o755)
            sync_folder(staging)
            staging.rename(target)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync_folder(self._root)
        return target


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read(path: Path, largest: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(largest + 1)
    except OSError as error:
        raise IntegrityError(f"cannot read {path.name} of model {path.parent.name}: {error.strerror}") from error
    if len(data) > largest:
        raise IntegrityError(f"{path.name} of model {path.parent.name} is larger than any that we write")
    return data


def _read_card(folder: Path, trusted: frozenset[str]) -> ModelCard:
    """Verify the signature over the card's bytes before a parser sees them."""
    written = _read(folder / CARD, LARGEST_CARD)
    signature = re.fullmatch(rb"([0-9a-f]{64})\n([0-9a-f]{128})\n", _read(folder / SIGNATURE, 1024))
    if signature is None:
        raise IntegrityError(f"the signature of model {folder.name} is malformed", code="model-signature")
    publisher = signature[1].decode()
    if publisher not in trusted:
        raise IntegrityError(
            f"model {folder.name} is signed by {publisher[:16]}…, which inference.trusted_publishers does not name",
            code="unknown-publisher",
        )
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(publisher)).verify(
            bytes.fromhex(signature[2].decode()), DOMAIN + written
        )
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError(f"the card of model {folder.name} was altered", code="model-signature") from error
    try:
        card = ModelCard.model_validate_json(written)
    except ValidationError as error:
        raise IntegrityError(
            f"the card of model {folder.name} does not have the form that this program knows", code="model-card"
        ) from error
    if card.canonical() != written:
        # Two spellings of one card would be two hashes of one model.
        raise IntegrityError(f"the card of model {folder.name} is not in its canonical form", code="model-card")
    return card


def _read_weights(folder: Path, card: ModelCard) -> Weights:
    return _check_weights(_read(folder / WEIGHTS, 1 << 31), card)


def _check_weights(data: bytes, card: ModelCard) -> Weights:
    if hashlib.sha256(data).hexdigest() != card.weights_sha256:
        raise IntegrityError(f"the weights of model {card.version} are not those of its card", code="model-weights")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise IntegrityError(f"the weights of model {card.version} are malformed", code="model-weights") from error
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != tensor_shapes(card.suffix) or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise IntegrityError(f"the weights of model {card.version} do not fit its card", code="model-weights")
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
