"""The service of the dealer: hands out correlated randomness, sees neither image nor weights.

Its one lasting secret is the master key file. Bundles live in memory until party 1 takes its half, or for a minute.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field, model_validator

from dicom_node.core import failpoint, logs, loops
from dicom_node.core.errors import ConfigError, VeilRayError
from dicom_node.core.settings import Port, read
from dicom_node.core.tls import Fingerprint

from .crypten_engine.dealer import TupleDealer
from .operation import LOOK_EVERY_S, Operated, Operation
from .protocol import selftest
from .protocol.channel import Channel
from .protocol.dealer import Deck
from .protocol.messages import LARGEST_PROGRAM, Bundle, Deal, Fetch, Message, TupleDeal, TupleFetch, overhead
from .protocol.server import Limits, Server

log = logs.get(__name__)
MASTER_KEY_BYTES = 32


class DealerSettings(Operated):
    """The dealer, a third organisation's service."""

    LIVE = frozenset({"names", "hospitals", "parties"})

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(default=7402, description="port to listen on; 0 takes a free one")
    hospitals: tuple[Fingerprint, ...] = Field(min_length=1, description="SHA-256 of the hospitals' certificates")
    parties: tuple[Fingerprint, ...] = Field(min_length=1, description="SHA-256 of the model owners' certificates")
    master_key: Path = Field(description="file of the master secret, made at the first start; losing it costs nothing")
    timeout_s: float = Field(default=20.0, gt=0, description="longest wait for any one message, seconds")
    handshake_timeout_s: float = Field(default=10.0, gt=0, description="time to finish the TLS handshake, seconds")
    bundle_lifetime_s: float = Field(default=60.0, gt=0, description="time for party 1 to take its half, seconds")
    maximum_bundles_per_hospital: int = Field(default=64, ge=1, description="bundles that may wait for party 1")
    maximum_connections: int = Field(default=1024, ge=1, le=4096, description="connections at once")
    maximum_connections_per_peer: int = Field(default=256, ge=1, le=4096, description="per certificate, at once")

    @model_validator(mode="after")
    def _apart(self) -> DealerSettings:
        if set(self.hospitals) & set(self.parties):
            raise ValueError("one certificate must not be both hospital and party: it would get both halves")
        return self


def master_key(path: Path) -> bytes:
    """Read the dealer's master secret, or make one where the file does not exist.

    Raises
    ------
    ConfigError
        The file is not 32 bytes, or its group or others may read it (``master-key``).
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(os.urandom(MASTER_KEY_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"the master key {path} can be read by others: chmod 600 it", code="master-key")
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot use the master key {path}: {error.strerror}", code="master-key") from error
    if len(secret) != MASTER_KEY_BYTES:
        raise ConfigError(f"the master key {path} is not {MASTER_KEY_BYTES} bytes: remove it", code="master-key")
    return secret


class Dealer:
    """The dealer as a running service.

    Parameters
    ----------
    settings : DealerSettings
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, settings: DealerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        trail = settings.master_key.parent / "audit.sqlite3"
        self.operation = Operation(settings, trail, "secure-infer dealer")
        self._deck = Deck(
            master_key(settings.master_key),
            frozenset(),
            frozenset(),
            lifetime_s=settings.bundle_lifetime_s,
            largest=settings.maximum_bundles_per_hospital,
            random=os.urandom,
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
        self.operation.metrics.watch_each("bundles_waiting", "Bundles that wait for party 1.", "peer", waiting)

    def take_up(self, settings: DealerSettings) -> None:
        """Put the live settings in force; what waits for those who left is burned."""
        hospitals, parties = (frozenset(map(bytes.fromhex, names)) for names in (settings.hospitals, settings.parties))
        self._deck.admit(hospitals, parties)
        self._tuples.admit(hospitals, parties)
        self.server.admit(frozenset({*settings.hospitals, *settings.parties}))

    def close(self) -> None:
        """End all connections; bundles that wait are burned."""
        self.operation.stop()

    def _converse(self, channel: Channel) -> None:
        asked: Message | None = None
        try:
            asked = channel.receive(overhead(Deal) + LARGEST_PROGRAM)
            for answer in self._answers(bytes.fromhex(channel.peer), asked):
                if isinstance(answer, Bundle):
                    failpoint.reach("dealer-dealt")
                channel.send(answer)
        except VeilRayError as error:
            note = log.info if error.code == "connection-closed" else log.warning  # `dicom-node check` only opens
            about = self._about(asked)
            note("request-refused", fingerprint=channel.peer, **about, **logs.describe(error))
            channel.fail(error)
            if asked is not None:
                self.operation.request_ended("bundle", channel.peer, error, **about)
            return
        finally:
            self.operation.metrics.moved(channel.sent, channel.received)
        done = "dealt" if isinstance(asked, Deal | TupleDeal) else "handed-over"
        about = self._about(asked) | {"bundle_id": getattr(answer, "bundle", b"").hex()}
        log.info(f"bundle-{done}", fingerprint=channel.peer, **about, bytes=channel.sent)
        self.operation.request_ended("bundle", channel.peer, done, **about)

    def _answers(self, peer: bytes, asked: Message) -> Iterator[Message]:
        if isinstance(asked, TupleDeal | TupleFetch):
            return self._tuples.answers(peer, asked)
        return self._deck.answers(peer, asked, self._clock())

    @staticmethod
    def _about(asked: Message | None) -> dict[str, str]:
        model = asked.model.hex() if isinstance(asked, Deal | Fetch | TupleDeal | TupleFetch) else ""
        return {"bundle_id": asked.bundle.hex() if isinstance(asked, Fetch | TupleFetch) else "", "model": model}


def serve(config: Path) -> int:
    """Run the dealer until SIGTERM; announce ``ready`` with its port in the log; return the exit status.

    Parameters
    ----------
    config : Path
        The settings file, `DealerSettings`.
    """
    stop = loops.stop_on_signals()
    for ring_bits in selftest.SHIFTS:  # any program may be asked for
        selftest.run(ring_bits)
    dealer = Dealer(read(config, DealerSettings))
    dealer.operation.start(config, dealer.server, dealer.take_up)
    status = loops.run({"operation": dealer.operation.run_once}, LOOK_EVERY_S, stop)
    dealer.close()
    return status
