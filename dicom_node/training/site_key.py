"""A site's pseudonyms: keyed hashes (HMAC-SHA-256, RFC 2104) of identifiers, the same within a site, none across sites.

Without the key nobody can try all patient numbers against the records. With another key no earlier decision is
recognised, so the key in use is noted in the records and a wrong one is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import sqlalchemy as sa

from dicom_node import durable, uids
from dicom_node.core.database import Database, fact
from dicom_node.core.errors import ConfigError

FACT = "training-key"
KEY_BYTES = 32


class SiteKey:
    """The secret of one site.

    Parameters
    ----------
    secret : bytes, length 32
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ConfigError(f"the training key must hold {KEY_BYTES} bytes", code="training-key")
        self._secret = secret

    def pseudonym(self, kind: str, *identifiers: str) -> str:
        """Return the keyed hash of some identifiers, 64 hexadecimal digits.

        Parameters
        ----------
        kind : str
            What they identify: the same text as patient and as accession number gives unrelated pseudonyms.
        *identifiers : str
            Length-prefixed, so that ``("ab", "c")`` and ``("a", "bc")`` differ.
        """
        code = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in (kind, *identifiers):
            encoded = part.encode()
            code.update(len(encoded).to_bytes(4, "big") + encoded)
        return code.hexdigest()

    def uid(self, original: str) -> str:
        """Return the UID that stands for `original`, under ``2.25`` (PS3.5 Annex B.2)."""
        return uids.derive(self.pseudonym("uid", original))

    def days(self, patient: str) -> int:
        """Return by how many days a patient's dates move into the past, 1..3650, the same for all dates of one."""
        return 1 + int(self.pseudonym("days", patient), 16) % 3650


def open_key(path: Path, database: Database) -> SiteKey:
    """Read the site's key; make it when the site has none yet.

    Raises
    ------
    ConfigError
        The file is unreadable, open to others, gone, or not the one that decisions were recorded under.
    """
    with database.read() as connection:
        noted = connection.execute(sa.select(fact.c.value).where(fact.c.name == FACT)).scalar_one_or_none()
    if noted is None and not path.exists():
        _make(path)
    key = SiteKey(_read(path))
    mark = key.pseudonym("key")
    if noted is None:
        with database.write() as connection:
            noted = connection.execute(sa.select(fact.c.value).where(fact.c.name == FACT)).scalar_one_or_none()
            if noted is None:
                connection.execute(fact.insert().values(name=FACT, value=mark))
                return key
    if not hmac.compare_digest(noted, mark):
        raise ConfigError(
            f"{path} is not the key under which consent was recorded: restore that one from a backup",
            code="training-key",
        )
    return key


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        durable.sync_folder(path.parent)
    except FileExistsError:
        return  # another command was faster; its key is read next
    except OSError as error:
        raise ConfigError(f"cannot write the training key {path}: {error.strerror}", code="training-key") from error


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} is open to others: chmod 600 it", code="training-key")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the training key {path}: {error.strerror}; restore it from a backup", code="training-key"
        ) from error
