"""The service of party 1, the model's owner: answers queries on features that it cannot read.

Crash-only: its state is the ledger of spent bundles. A bundle is marked as spent when the hospital announces it, before
party 1 asks the dealer for its half, so whatever happens afterwards, that bundle is never computed on twice. A mark
without a row in the audit trail is a query that ended with the process.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from dicom_node.core import failpoint, logs, loops, tls
from dicom_node.core.errors import ProtocolError, VeilRayError
from dicom_node.core.settings import EndpointSettings, Port, read
from dicom_node.core.tls import Fingerprint

from . import selftest
from .crypten_engine.owner import Owner
from .distrust import Distrust
from .models import ModelStore
from .operations import memory
from .operations.operation import LOOK_EVERY_S, Operated, Operation
from .protocol.messages import Audit, Fetch, Message, Open, TupleOpen, overhead
from .protocol.party1 import PartySession, Peers, PrivateModel
from .protocol.plan import Plan
from .protocol.session import State
from .spent import Allowance, SpentLedger
from .transport.channel import Channel
from .transport.connections import Connections
from .transport.server import Limits, Server

log = logs.get(__name__)


class PartySettings(Operated):
    """Party 1, the model owner's service."""

    LIVE = frozenset({"names", "hospitals", "daily_quota", "queries_per_minute", "burst"})

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(default=7401, description="port to listen on; 0 takes a free one")
    dealer: EndpointSettings = Field(description="the dealer of correlated randomness")
    hospitals: tuple[Fingerprint, ...] = Field(min_length=1, description="SHA-256 of the certificates that may ask")
    models: Path = Field(description="folder of the models that are served, weights included")
    state_dir: Path = Field(description="folder of the ledger of spent bundles; never restore it from a backup")
    trusted_publishers: tuple[str, ...] = Field(
        default=(), description="Ed25519 public keys, hexadecimal, besides ours"
    )
    daily_quota: int = Field(default=5000, ge=1, description="bundles per hospital certificate within 24 hours")
    queries_per_minute: float = Field(
        default=120.0, gt=0, le=1e6, description="lasting rate of bundles per hospital certificate"
    )
    burst: int = Field(default=200, ge=1, le=10**6, description="bundles at once after a pause, per certificate")
    timeout_s: float = Field(default=20.0, gt=0, description="longest wait for any one message, seconds")
    handshake_timeout_s: float = Field(default=10.0, gt=0, description="time to finish the TLS handshake, seconds")
    idle_timeout_s: float = Field(default=120.0, gt=0, description="time between two bundles on a connection, seconds")
    bundle_lifetime_s: int = Field(default=600, ge=1, le=86400, description="wait for the query of a bundle, seconds")
    maximum_connections: int = Field(default=1024, ge=1, le=4096, description="connections at once")
    maximum_connections_to_dealer: int = Field(
        default=32, ge=1, le=4096, description="to the dealer, at once; further queries wait their turn"
    )
    maximum_connections_per_hospital: int = Field(default=64, ge=1, le=4096, description="per certificate, at once")


class Models:
    """The models that party 1 serves, by the hash of their cards; versions come and go without a restart."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found: dict[bytes, PrivateModel] = {}
        self._versions: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._found)

    def load(self) -> None:
        """Load the versions that are not loaded yet.

        Raises
        ------
        ConfigError, IntegrityError
            A model is unfit or altered.
        """
        with self._lock:
            for version in self._store.served():
                if version not in self._versions:
                    self._load(version)

    def refresh(self) -> None:
        """Drop the versions that were removed or retired, load the new ones; one that is unfit is told and left out."""
        with self._lock:
            served = self._store.served()
            for version in set(self._versions) - set(served):
                del self._found[self._versions.pop(version)]
                log.info("model-withdrawn", model=version)
            for version in set(served) - set(self._versions):
                try:
                    self._load(version)
                except VeilRayError as error:
                    log.error("model-not-loaded", model=version, **logs.describe(error))

    def _load(self, version: str) -> None:
        card = self._store.card(version)
        digest = hashlib.sha256(card.canonical()).digest()
        plan = Plan(card.suffix)
        selftest.run(plan.ring.bits)
        self._found[digest] = PrivateModel.of(version, digest, plan, self._store.weights(version))
        self._versions[version] = digest
        memory.release()  # the file's bytes and the floating-point weights, more than what is kept

    def find(self, digest: bytes) -> PrivateModel:
        """Return the model of a card's hash.

        Raises
        ------
        ProtocolError
            It is not served here (``unknown-model``).
        """
        if digest not in self._found:
            self.refresh()
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
        self.models = Models(ModelStore(settings.models, settings.trusted_publishers))
        self.models.load()
        self._ledger = SpentLedger(settings.state_dir / "spent.sqlite3")
        self._distrust = Distrust(settings.state_dir / "dealer-distrusted.json", settings.dealer.fingerprint)
        self._crypten = Owner(self.models.find, self._dial_dealer, settings.timeout_s)
        self.operation = Operation(settings, settings.state_dir / "audit.sqlite3", "secure-infer party", clock)
        self._fetching = threading.BoundedSemaphore(settings.maximum_connections_to_dealer)
        self._dealer = Connections(settings.dealer, self.operation.credentials, "the dealer", settings.timeout_s)
        limits = Limits(
            settings.maximum_connections,
            settings.maximum_connections_per_hospital,
            settings.handshake_timeout_s,
            settings.timeout_s,
        )
        credentials = self.operation.credentials
        self.server = Server(settings.host, settings.port, credentials, frozenset(), limits, self._converse)
        self.take_up(settings)
        figures = self.operation.metrics
        figures.watch("models", "Model versions served.", lambda: len(self.models))
        figures.watch_each("quota_left", "Bundles left of the last 24 hours.", "peer", self._quota_left)

    def take_up(self, settings: PartySettings) -> None:
        """Put the live settings in force, and look for new and withdrawn models."""
        self._allowance = Allowance(settings.daily_quota, settings.queries_per_minute, settings.burst)
        self._hospitals = settings.hospitals
        self.server.admit(frozenset(settings.hospitals))
        self.models.refresh()

    def close(self) -> None:
        """End all connections and close ledger and trail."""
        self.operation.stop()
        self._crypten.close()
        self._dealer.close()
        self._ledger.close()

    def _quota_left(self) -> dict[str, float]:
        now = self._clock()
        return {one: self._ledger.left(bytes.fromhex(one), now, self._allowance) for one in self._hospitals}

    def _converse(self, channel: Channel) -> None:
        """Serve one bundle after the other until the hospital leaves; one that fails ends the connection."""
        try:
            while self._serve(channel):
                pass
        finally:
            self.operation.metrics.moved(channel.sent, channel.received)

    def _serve(self, channel: Channel) -> bool:
        """Serve one bundle; false where none was opened, or it failed."""
        session = PartySession(
            self._peers(channel.peer),
            self.models.find,
            lambda bundle: self._spend(bundle, channel.peer),
            self._settings.bundle_lifetime_s,
        )
        opening: Message | None = None
        try:
            opening = channel.receive(max(session.limit, overhead(TupleOpen)), self._settings.idle_timeout_s)
            self.server.require(channel)
            if isinstance(opening, TupleOpen):
                self._run_crypten(opening, channel)
            else:
                self._run(session, opening, channel)
        except VeilRayError as error:
            if opening is None and error.code in ("connection-closed", "peer-timeout"):
                return False  # the hospital needs no more bundles
            if error.code == "bundle-forged":
                self._distrust.note(session.bundle, session.signed, self._clock())
            about = self._about(session, opening)
            # A hospital that closes has dropped a bundle it did not need: that is no fault.
            note = log.info if error.code == "connection-closed" else log.warning
            note("query-aborted", fingerprint=channel.peer, **about, **logs.describe(error))
            channel.fail(error)
            if opening is not None:
                self.operation.request_ended("query", channel.peer, error, **about)
            return False
        finally:
            session.abort()
        return True

    def _run(self, session: PartySession, opening: Message, channel: Channel) -> None:
        started, before = time.perf_counter(), channel.received
        self._distrust.check()
        fetch = session.handle(opening)
        assert isinstance(fetch, Fetch)
        channel.send(self._fetch(fetch, session))
        message = self._next(session, channel)
        if isinstance(message, Audit):
            self._told(session, message, channel)
            self._ended("bundle", "audited", session, opening, channel)
            return
        while session.state is State.PREPARING:
            prepared = session.handle(message)
            if prepared is not None:
                channel.send(prepared)
            message = self._next(session, channel)
        self.operation.metrics.took("offline", time.perf_counter() - started)
        started = time.perf_counter()
        while self._told(session, message, channel) is not State.DONE:
            message = channel.receive(session.limit)
        failpoint.reach("party1-answered")
        seconds = round(time.perf_counter() - started, 5)
        self.operation.metrics.took("online", seconds)
        self._ended("query", "answered", session, opening, channel, duration_s=seconds, bytes=channel.received - before)

    def _next(self, session: PartySession, channel: Channel) -> Message:
        """Wait for the next message before the query, and for the query itself as long as a bundle may lie ready."""
        return channel.receive(
            session.limit, self._settings.bundle_lifetime_s if session.state is State.READY else None
        )

    @staticmethod
    def _told(session: PartySession, message: Message, channel: Channel) -> State:
        for answer in session.answers(message):
            channel.send(answer)
        session.meanwhile()
        return session.state

    def _ended(
        self, kind: str, done: str, session: PartySession, opening: Message, channel: Channel, **more: float
    ) -> None:
        about = self._about(session, opening)
        log.info(f"{kind}-{done}", fingerprint=channel.peer, **about, **more)
        self.operation.request_ended(kind, channel.peer, done, **about)

    def _run_crypten(self, opening: TupleOpen, channel: Channel) -> None:
        served = self._crypten.serve(opening, channel, lambda bundle: self._spend(bundle, channel.peer))
        about = {"bundle_id": opening.bundle.hex(), "model": served.version}
        seconds = round(served.online_s, 5)
        log.info("query-answered", fingerprint=channel.peer, **about, duration_s=seconds, bytes=channel.received)
        self.operation.metrics.took("offline", served.offline_s)
        self.operation.metrics.took("online", seconds)
        self.operation.request_ended("query", channel.peer, "answered", **about)

    def _dial_dealer(self) -> Channel:
        settings, context = self._settings, self.operation.credentials.client
        return Channel.dial(settings.dealer, context, "the dealer", settings.timeout_s)

    def _fetch(self, fetch: Fetch, session: PartySession) -> Message:
        """Take party 1's half from the dealer, with the material that follows it; the answer to the hospital."""
        with self._fetching:  # the dealer would refuse more
            dealer, half = self._dealer.ask(fetch, session.limit)
            try:
                ready = session.handle(half)
                while ready is None:
                    ready = session.handle(dealer.receive(session.limit))
            except BaseException:
                dealer.close()
                raise
            self._dealer.keep(dealer)
            return ready

    def _peers(self, hospital: str) -> Peers:
        settings = self._settings
        ours = tls.fingerprint(settings.tls.certificate)  # looked up each time: certificates are renewed while we run
        return Peers(*map(bytes.fromhex, (hospital, ours, settings.dealer.fingerprint)))

    def _spend(self, bundle: bytes, peer: str) -> None:
        self._ledger.spend(bundle, bytes.fromhex(peer), self._clock(), self._allowance)
        failpoint.reach("party1-spent")

    @staticmethod
    def _about(session: PartySession, opening: Message | None) -> dict[str, str]:
        model = session.model.version if session.model else ""
        return {"bundle_id": opening.bundle.hex() if isinstance(opening, Open | TupleOpen) else "", "model": model}


def serve(config: Path) -> int:
    """Run party 1 until SIGTERM; announce ``ready`` with its port in the log; return the exit status.

    Parameters
    ----------
    config : Path
        The settings file, `PartySettings`.
    """
    stop = loops.stop_on_signals()
    memory.keep()
    party = Party(read(config, PartySettings))
    party.operation.start(config, party.server, party.take_up, count=len(party.models))
    status = loops.run({"operation": party.operation.run_once}, LOOK_EVERY_S, stop)
    party.close()
    return status
