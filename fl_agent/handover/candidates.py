"""The candidates of a site, and every decision about them, durable and audited.

::

    state_dir/candidates/<version>/     card.json, signature, weights.safetensors (see `secure_infer.models`)

    received --accept--> accepted --activate--> active --roll back--> received

Nothing is read before the publisher's signature over it was verified. An acceptance holds for the very bytes of the
card, and through it of the weights; another card under the same version has to be accepted anew. Activation and
roll-back are noted before they are done: a process that dies leaves neither unrecorded, and repeating it completes it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from dicom_node.core import audit
from dicom_node.core.audit import Event, Record
from dicom_node.core.database import Database, fact
from dicom_node.core.errors import ConfigError, IntegrityError, Refused
from dicom_node.core.failpoint import reach
from dicom_node.core.settings import Settings
from secure_infer import site_models
from secure_infer.card import ModelCard
from secure_infer.models import ModelStore, Weights

from .claim import require_claimed

ACTOR: Final = "fl-agent candidates"
#: Names in the table `fact`.
ACCEPTED: Final = "handover.accepted."
PREVIOUS: Final = "handover.previous"


class Candidates:
    """The candidates of one site.

    Parameters
    ----------
    settings : Settings
        The site's.
    database : Database
        The site's records.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    ConfigError
        The settings name no publisher of candidates (``no-publisher``).
    """

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], float] = time.time) -> None:
        publisher = settings.training.handover.publisher
        if not publisher:
            raise ConfigError(
                "candidates need a publisher: set training.handover.publisher to its public key", code="no-publisher"
            )
        self._settings = settings
        self._database = database
        self._clock = clock
        self._pinned = (publisher,)
        self._folder = settings.site.state_dir / "candidates"
        self._store = ModelStore(self._folder, self._pinned)

    def versions(self) -> tuple[str, ...]:
        """Name the candidates that are here, verified or not."""
        return self._store.versions()

    def card(self, version: str) -> ModelCard:
        """Return a candidate's card.

        Raises
        ------
        ConfigError
            There is no such candidate.
        IntegrityError
            The pinned publisher did not sign it, or it was altered since.
        Refused
            It claims more privacy than it has (``epsilon-understated``).
        """
        card = self._store.verify(version, trusted=self._pinned)
        require_claimed(card.privacy)
        return card

    def weights(self, version: str) -> Weights:
        """Return a candidate's private tensors; see `card`."""
        self.card(version)
        return self._store.weights(version)

    def state(self, version: str) -> str:
        """Say where a candidate stands: ``received``, ``accepted`` or ``active``."""
        if site_models.version_in_use(self._settings) == version:
            return "active"
        return "accepted" if self._fact(ACCEPTED + version) else "received"

    def receive(self, source: Path) -> ModelCard:
        """Verify a published version elsewhere, and keep a copy.

        Parameters
        ----------
        source : Path
            Folder of the version, by its name, with its weights.

        Raises
        ------
        ConfigError
            It is here already.
        IntegrityError, Refused
            See `card`; nothing is kept.
        """
        card = ModelStore(source.parent, self._pinned).verify(source.name, trusted=self._pinned)
        require_claimed(card.privacy)
        self._store.install(source, with_weights=True)
        self._note("candidate-received", "C", card)
        return self.card(card.version)

    def evaluated(self, version: str) -> None:
        """Note that a candidate was evaluated here; what came out is nobody else's, so no figure is noted."""
        self._note("candidate-evaluated", "E", self.card(version))

    def accept(self, version: str, who: str) -> None:
        """Accept a candidate.

        Parameters
        ----------
        who : str
            The person who decides, or ``policy``.
        """
        card = self.card(version)
        with self._database.write() as connection:
            _put(connection, ACCEPTED + version, _digest(card))
            _record(connection, "candidate-accepted", "U", {**_about(card), "by": who}, self._clock())

    def activate(self, version: str, party_models: Path | None = None) -> ModelCard:
        """Make an accepted candidate the model that answers, from each worker's next study on.

        Parameters
        ----------
        party_models : Path or None
            The models of a party 1 on this machine, which gets the weights; another organisation's party must have
            installed them before.

        Raises
        ------
        Refused
            Nobody accepted it, or what was accepted is not what is here now (``not-accepted``).
        ConfigError
            It is active already, or the settings pin another model.
        IntegrityError
            It was altered, or another model was installed under its version.
        """
        site_models.require_unpinned(self._settings)
        card = self.card(version)
        if self._fact(ACCEPTED + version) != _digest(card):
            raise Refused(f"{version} is not accepted: fl-agent candidates accept {version}", code="not-accepted")
        previous = site_models.version_in_use(self._settings)
        if previous == version:
            raise ConfigError(f"{version} is active already", code="active")
        source = self._folder / version
        if party_models is not None:
            at_party = ModelStore(party_models, self._pinned)
            if version not in at_party.versions():
                at_party.install(source, with_weights=True)
            _require_same(card, at_party.card(version))
        _require_same(card, site_models.install(self._settings, source))
        with self._database.write() as connection:
            _put(connection, PREVIOUS, previous)
            detail = {**_about(card), "previous": previous}
            _record(connection, "model-activated", "U", detail, self._clock())
        reach("handover-noted")
        site_models.activate(self._settings, version)
        return card

    def roll_back(self) -> tuple[str, str]:
        """Make the model that answered before the newest activation answer again; the candidate loses its acceptance.

        Returns
        -------
        tuple of str
            The version that answered until now, and the one that answers again.

        Raises
        ------
        ConfigError
            No activation can be taken back (``nothing-to-roll-back``), or the settings pin a model.
        IntegrityError
            The previous model was altered; the active one stays.
        """
        site_models.require_unpinned(self._settings)
        active, previous = site_models.version_in_use(self._settings), self._fact(PREVIOUS)
        if previous is None or previous == active:  # the latter where an earlier command died half-way
            raise ConfigError(f"{active} answers, and no activation can be taken back", code="nothing-to-roll-back")
        site_models.site_store(self._settings).verify(previous)
        with self._database.write() as connection:
            _put(connection, ACCEPTED + active, None)
            _record(connection, "model-rolled-back", "U", {"model": active, "previous": previous}, self._clock())
        reach("handover-noted")
        site_models.activate(self._settings, previous)
        with self._database.write() as connection:
            _put(connection, PREVIOUS, None)
        return active, previous

    def _fact(self, name: str) -> str | None:
        with self._database.read() as connection:
            found: str | None = connection.execute(
                sa.select(fact.c.value).where(fact.c.name == name)
            ).scalar_one_or_none()
        return found

    def _note(self, what: str, action: str, card: ModelCard) -> None:
        with self._database.write() as connection:
            _record(connection, what, action, _about(card), self._clock())


def _record(connection: sa.Connection, what: str, action: str, detail: dict[str, Any], now: float) -> None:
    audit.append(connection, Record(Event.APPLICATION_ACTIVITY, what, action, ACTOR, detail=detail), now)


def _about(card: ModelCard) -> dict[str, Any]:
    return {"model": card.version, "card": _digest(card)}


def _digest(card: ModelCard) -> str:
    return hashlib.sha256(card.canonical()).hexdigest()


def _require_same(accepted: ModelCard, installed: ModelCard) -> None:
    if _digest(accepted) != _digest(installed):
        raise IntegrityError(
            f"another model is installed as {accepted.version}: ask the publisher for a new version",
            code="model-version",
        )


def _put(connection: sa.Connection, name: str, value: str | None) -> None:
    connection.execute(fact.delete().where(fact.c.name == name))
    if value is not None:
        connection.execute(fact.insert().values(name=name, value=value))
