"""The service of the dealer: hands out correlated randomness, sees neither image nor weights.

Its one lasting secret is the master key file. Bundles are dealt ahead into a pool of files while nobody asks; whoever
holds these, the dealer included, can open none. What was handed to party 0 lives until party 1 takes its half, or for a
minute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pydantic import Field, model_validator

from dicom_node.core import failpoint, logs, loops
from dicom_node.core.errors import VeilRayError
from dicom_node.core.settings import Port, read
from dicom_node.core.tls import Fingerprint

from . import keyfile, selftest
from .crypten_engine.dealer import TupleDealer
from .dealing import pool
from .dealing.deck import Deck
from .operations import memory
from .operations.operation import Operated, Operation
from .protocol.dealer import Dealing
from .protocol.manifest import Signer
from .protocol.messages import LARGEST_PROGRAM, Bundle, Deal, Fetch, Message, TupleDeal, TupleFetch, overhead
from .transport.channel import Channel
from .transport.server import Limits, Server

log = logs.get(__name__)
#: Looks for work to deal ahead this often, seconds.
DEAL_EVERY_S = 0.2
LOWEST_PRIORITY = 19
POOL_FIGURES = {
    "orders": "Hospitals, model owners and models for which bundles are dealt ahead.",
    "bundles": "Bundles dealt ahead that wait.",
    "bytes": "Bytes of bundles dealt ahead that wait.",
    "dealt_ahead": "Bundles dealt ahead since the start.",
    "dealt_on_demand": "Bundles dealt while a hospital waited, since the start.",
    "handed_out": "Bundles handed out of the pool since the start.",
    "burned": "Bundles of the pool that were dropped unused, since the start.",
}


class DealerSettings(Operated):
    """The dealer, a third organisation's service."""

    LIVE = frozenset({"names", "hospitals", "parties"})

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(default=7402, description="port to listen on; 0 takes a free one")
    hospitals: tuple[Fingerprint, ...] = Field(min_length=1, description="SHA-256 of the hospitals' certificates")
    parties: tuple[Fingerprint, ...] = Field(min_length=1, description="SHA-256 of the model owners' certificates")
    master_key: Path = Field(description="file of the master secret, made at the first start; losing it costs nothing")
    pool: Path | None = Field(
        default=None, description="folder of bundles dealt ahead; `pool` beside the master key when empty"
    )
    pool_bundles: int = Field(
        default=8, ge=0, le=4096, description="bundles dealt ahead for each hospital, model owner and model; 0 for none"
    )
    pool_bytes: int = Field(default=8 * 2**30, ge=0, description="bytes of all bundles dealt ahead")
    pool_idle_s: float = Field(
        default=3600.0, gt=0, description="time after which bundles of a model no longer asked for are dropped, seconds"
    )
    timeout_s: float = Field(default=20.0, gt=0, description="longest wait for any one message, seconds")
    handshake_timeout_s: float = Field(default=10.0, gt=0, description="time to finish the TLS handshake, seconds")
    idle_timeout_s: float = Field(default=120.0, gt=0, description="time between two requests on a connection, seconds")
    bundle_lifetime_s: float = Field(default=60.0, gt=0, description="time for party 1 to take its half, seconds")
    maximum_bundles_per_hospital: int = Field(default=64, ge=1, description="bundles that may wait for party 1")
    maximum_connections: int = Field(default=1024, ge=1, le=4096, description="connections at once")
    maximum_connections_per_peer: int = Field(default=256, ge=1, le=4096, description="per certificate, at once")

    @model_validator(mode="after")
    def _apart(self) -> DealerSettings:
        if set(self.hospitals) & set(self.parties):
            raise ValueError("one certificate must not be both hospital and party: it would get both halves")
        return self


class Dealer:
    """The dealer as a running service.

    Parameters
    ----------
    settings : DealerSettings
    clock, monotonic : callable
        Seconds since the epoch, and seconds of a clock that is never set back.
    """

    def __init__(
        self,
        settings: DealerSettings,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock, self._monotonic = clock, monotonic
        self.operation = Operation(settings, settings.master_key.parent / "audit.sqlite3", "secure-infer dealer")
        dealing = Dealing(keyfile.secret(settings.master_key), Signer.of(settings.tls), os.urandom)
        ahead = pool.Limits(settings.pool_bundles, settings.pool_bytes, settings.pool_idle_s)
        peers = _peers(settings)
        self.pool = pool.Pool(settings.pool or settings.master_key.parent / "pool", dealing, ahead, *peers, clock=clock)
        self._deck = Deck(
            dealing,
            self.pool,
            *peers,
            lifetime_s=settings.bundle_lifetime_s,
            largest=settings.maximum_bundles_per_hospital,
        )
        self._tuples = TupleDealer(os.urandom)
        limits = Limits(
            settings.maximum_connections,
            settings.maximum_connections_per_peer,
            settings.handshake_timeout_s,
            settings.timeout_s,
        )
        credentials = self.operation.credentials
        self.server = Server(settings.host, settings.port, credentials, frozenset(), limits, self._converse)
        self.take_up(settings)
        waiting = self._deck.waiting
        figures = self.operation.metrics
        figures.watch_each("bundles_waiting", "Bundles that wait for party 1.", "peer", waiting)
        for name, text in POOL_FIGURES.items():
            figures.watch(f"pool_{name}", text, partial(self._figure, name))

    def _figure(self, name: str) -> float:
        return self.pool.figures()[name]

    def take_up(self, settings: DealerSettings) -> None:
        """Put the live settings in force; what waits for those who left is burned."""
        peers = _peers(settings)
        self._deck.admit(*peers)
        self._tuples.admit(*peers)
        self.pool.admit(*peers)
        self.server.admit(frozenset({*settings.hospitals, *settings.parties}))

    def run_once(self) -> bool:
        """Burn what nobody took, deal one bundle ahead; false where nothing was to deal.

        Raises
        ------
        Unavailable
            The disk takes no more.
        """
        self._deck.forget(self._monotonic())
        return self.pool.fill(self._clock())

    def close(self) -> None:
        """End all connections; bundles that wait for party 1 are burned, those in the pool stay."""
        self.operation.stop()
        self._deck.forget(float("inf"))
        self.pool.close()

    def _converse(self, channel: Channel) -> None:
        """Answer requests until the caller leaves; one that fails ends the connection."""
        try:
            while self._answer(channel):
                pass
        finally:
            self.operation.metrics.moved(channel.sent, channel.received)

    def _answer(self, channel: Channel) -> bool:
        """Answer one request; false where none came, or it failed."""
        asked: Message | None = None
        before = channel.sent
        try:
            asked = channel.receive(overhead(Deal) + LARGEST_PROGRAM, self._settings.idle_timeout_s)
            self.server.require(channel)
            with self.pool.request():
                for answer in self._answers(bytes.fromhex(channel.peer), asked):
                    if isinstance(answer, Bundle):
                        failpoint.reach("dealer-dealt")
                    channel.send(answer)
        except VeilRayError as error:
            if asked is None and error.code in ("connection-closed", "peer-timeout"):
                return False  # the caller has no more to ask
            about = self._about(asked)
            log.warning("request-refused", fingerprint=channel.peer, **about, **logs.describe(error))
            channel.fail(error)
            if asked is not None:
                self.operation.request_ended("bundle", channel.peer, error, **about)
            return False
        done = "dealt" if isinstance(asked, Deal | TupleDeal) else "handed-over"
        about = self._about(asked) | {"bundle_id": getattr(answer, "bundle", b"").hex()}
        log.info(f"bundle-{done}", fingerprint=channel.peer, **about, bytes=channel.sent - before)
        self.operation.request_ended("bundle", channel.peer, done, **about)
        return True

    def _answers(self, peer: bytes, asked: Message) -> Iterator[Message]:
        if isinstance(asked, TupleDeal | TupleFetch):
            return self._tuples.answers(peer, asked)
        return self._deck.answers(peer, asked, self._monotonic())

    @staticmethod
    def _about(asked: Message | None) -> dict[str, str]:
        model = asked.model.hex() if isinstance(asked, Deal | Fetch | TupleDeal | TupleFetch) else ""
        return {"bundle_id": asked.bundle.hex() if isinstance(asked, Fetch | TupleFetch) else "", "model": model}


def _peers(settings: DealerSettings) -> tuple[frozenset[bytes], frozenset[bytes]]:
    hospitals, parties = (frozenset(map(bytes.fromhex, names)) for names in (settings.hospitals, settings.parties))
    return hospitals, parties


def serve(config: Path) -> int:
    """Run the dealer until SIGTERM; announce ``ready`` with its port in the log; return the exit status.

    Parameters
    ----------
    config : Path
        The settings file, `DealerSettings`.
    """
    stop = loops.stop_on_signals()
    memory.keep()
    for ring_bits in selftest.SHIFTS:  # any program may be asked for
        selftest.run(ring_bits)
    dealer = Dealer(read(config, DealerSettings))
    waiting = dealer.pool.figures()
    dealer.operation.start(config, dealer.server, dealer.take_up, count=waiting["bundles"], bytes=waiting["bytes"])

    def deal_ahead() -> bool:
        # Of this thread alone (Linux): dealing ahead takes what the processor has left.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        return dealer.run_once()

    status = loops.run({"operation": dealer.operation.run_once, "pool": deal_ahead}, DEAL_EVERY_S, stop)
    dealer.close()
    return status
