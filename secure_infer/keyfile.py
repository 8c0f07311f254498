"""A secret of 32 bytes in a file of its own, made at the first start and readable by the service's user alone."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dicom_node.core.errors import ConfigError
from dicom_node.durable import sync_folder

SECRET_BYTES = 32


def secret(path: Path) -> bytes:
    """Read the secret, or make one, durably, where the file does not exist.

    Raises
    ------
    ConfigError
        The file is not 32 bytes, or its group or others may read it (``key-file``).
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(os.urandom(SECRET_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(path.parent)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"the key file {path} can be read by others: chmod 600 it", code="key-file")
        found = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot use the key file {path}: {error.strerror}", code="key-file") from error
    if len(found) != SECRET_BYTES:
        raise ConfigError(f"the key file {path} is not {SECRET_BYTES} bytes: remove it", code="key-file")
    return found


def sealing_key(path: Path) -> X25519PrivateKey:
    """Read the hospital's key to which dealers seal seeds, or make one; errors as `secret`."""
    return X25519PrivateKey.from_private_bytes(secret(path))
