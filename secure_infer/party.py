"""The service of party 1, the model's owner: answers queries on features that it cannot read.

Crash-only: its state is the ledger of spent bundles. A bundle is marked as spent when the hospital announces it, before
party 1 asks the dealer for its half, so whatever happens afterwards, that bundle is never computed on twice.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from dicom_node.core import failpoint, logs, loops, tls
from dicom_node.core.credentials import Credentials
from dicom_node.core.errors import ProtocolError, VeilRayError
from dicom_node.core.settings import EndpointSettings, Port, Section, TlsSettings
from dicom_node.core.tls import Fingerprint

from .models import ModelStore
from .protocol import selftest
from .protocol.channel import Channel
from .protocol.ledger import SpentLedger
from .protocol.messages import Fetch, Message
from .protocol.network1 import NetworkParty, PrivateNetwork, session_for
from .protocol.network_plan import NetworkPlan
from .protocol.party1 import PartySession, PrivateModel
from .protocol.plan import LARGEST_OPEN, plan_of
from .protocol.server import Limits, Server, until_stopped
from .protocol.session import State

log = logs.get(__name__)


class PartySettings(Section):
    """Party 1, the model owner's service."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(default=7401, description="port to listen on; 0 takes a free one")
    tls: TlsSettings = Field(description="this party's certificate, and the authorities of hospitals and dealer")
    dealer: EndpointSettings = Field(description="the dealer of correlated randomness")
    hospitals: tuple[Fingerprint, ...] = Field(min_length=1, description="SHA-256 of the certificates that may ask")
    models: Path = Field(description="folder of the models that are served, weights included")
    state_dir: Path = Field(description="folder of the ledger of spent bundles; never restore it from a backup")
    trusted_publishers: tuple[str, ...] = Field(
        default=(), description="Ed25519 public keys, hexadecimal, besides ours"
    )
    daily_quota: int = Field(default=5000, ge=1, description="bundles per hospital certificate within 24 hours")
    timeout_s: float = Field(default=20.0, gt=0, description="longest wait for any one message, seconds")
    handshake_timeout_s: float = Field(default=10.0, gt=0, description="time to finish the TLS handshake, seconds")
    bundle_lifetime_s: int = Field(default=600, ge=1, le=86400, description="wait for the query of a bundle, seconds")
    maximum_connections: int = Field(default=256, ge=1, le=4096, description="connections at once")
    maximum_connections_per_hospital: int = Field(default=64, ge=1, le=4096, description="per certificate, at once")


class Models:
    """The models that party 1 serves, by the hash of their cards; new versions are found without a restart."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found: dict[bytes, PrivateModel | PrivateNetwork] = {}
        self._versions: set[str] = set()

    def load(self) -> int:
        """Load the versions that are not loaded yet; return how many are served.

        Raises
        ------
        ConfigError, IntegrityError
            A model is unfit or altered.
        """
        with self._lock:
            for version in self._store.versions():
                if version not in self._versions:
                    card = self._store.card(version)
                    digest = hashlib.sha256(card.canonical()).digest()
                    plan, tensors = plan_of(card.suffix), self._store.weights(version)
                    if isinstance(plan, NetworkPlan):
                        selftest.run(plan.ring.bits)
                    self._found[digest] = (
                        PrivateNetwork.of(version, digest, plan, tensors)
                        if isinstance(plan, NetworkPlan)
                        else PrivateModel.of(version, digest, plan, tensors)
                    )
                    self._versions.add(version)
            return len(self._found)

    def find(self, digest: bytes) -> PrivateModel | PrivateNetwork:
        """Return the model of a card's hash.

        Raises
        ------
        ProtocolError
            It is not served here (``unknown-model``).
        """
        if digest not in self._found:
            self.load()
        found = self._found.get(digest)
        if found is None:
            raise ProtocolError("no model with that card is served here", code="unknown-model")
        return found


class Party:
    """Party 1 as a running service.

    Parameters
    ----------
    settings : PartySettings
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, settings: PartySettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._credentials = Credentials(settings.tls)
        self._models = Models(ModelStore(settings.models, settings.trusted_publishers))
        self.served = self._models.load()
        self._ledger = SpentLedger(settings.state_dir / "spent.sqlite3")
        limits = Limits(
            settings.maximum_connections,
            settings.maximum_connections_per_hospital,
            settings.handshake_timeout_s,
            settings.timeout_s,
        )
        peers = frozenset(settings.hospitals)
        self.server = Server(settings.host, settings.port, self._credentials, peers, limits, self._converse)

    def close(self) -> None:
        """End all connections and close the ledger."""
        self.server.stop()
        self._ledger.close()

    def _converse(self, channel: Channel) -> None:
        session: PartySession | NetworkParty | None = None
        try:
            opening = channel.receive(LARGEST_OPEN)
            session = session_for(
                opening,
                bytes.fromhex(channel.peer),
                self._models.find,
                lambda bundle: self._spend(bundle, channel.peer),
                self._settings.bundle_lifetime_s,
            )
            self._run(session, opening, channel)
        except VeilRayError as error:
            if session is not None:
                session.abort()
            # A hospital that closes has dropped a bundle it did not need: that is no fault.
            note = log.info if error.code == "connection-closed" else log.warning
            note("query-aborted", **self._about(session, channel), **logs.describe(error))
            channel.fail(error)
        finally:
            if session is not None:
                session.abort()

    def _run(self, session: PartySession | NetworkParty, opening: Message, channel: Channel) -> None:
        fetch = session.handle(opening)
        assert isinstance(fetch, Fetch)
        channel.send(self._fetch(fetch, session))
        while session.state is State.COVERING:
            session.handle(channel.receive(session.limit))
        message = channel.receive(session.limit, self._settings.bundle_lifetime_s)
        started = time.perf_counter()
        while True:
            answer = session.handle(message)
            if answer is not None:
                channel.send(answer)
            if session.state is State.DONE:
                break
            message = channel.receive(session.limit)
        failpoint.reach("party1-answered")
        seconds = round(time.perf_counter() - started, 5)
        log.info("query-answered", **self._about(session, channel), duration_s=seconds, bytes=channel.received)

    def _fetch(self, fetch: Fetch, session: PartySession | NetworkParty) -> Message:
        """Take party 1's half from the dealer, with the material that follows it; the answer to the hospital."""
        settings = self._settings
        with Channel.dial(settings.dealer, self._credentials.client, "the dealer", settings.timeout_s) as dealer:
            dealer.send(fetch)
            ready = None
            while ready is None:
                ready = session.handle(dealer.receive(session.dealer_limit))
            return ready

    def _spend(self, bundle: bytes, peer: str) -> None:
        self._ledger.spend(bundle, bytes.fromhex(peer), self._clock(), self._settings.daily_quota)
        failpoint.reach("party1-spent")

    @staticmethod
    def _about(session: PartySession | NetworkParty | None, channel: Channel) -> dict[str, str]:
        model = session.model.version if session and session.model else ""
        return {"bundle_id": session.bundle.hex() if session else "", "fingerprint": channel.peer, "model": model}


def serve(settings: PartySettings) -> int:
    """Run party 1 until SIGTERM; announce ``ready`` with its port in the log; return the exit status."""
    stop = loops.stop_on_signals()
    party = Party(settings)
    party.server.start()
    log.info(
        "ready",
        host=settings.host,
        port=party.server.port,
        count=party.served,
        fingerprint=tls.fingerprint(settings.tls.certificate),
    )
    return until_stopped(party.server, stop, party.close)
