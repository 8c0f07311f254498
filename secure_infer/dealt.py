"""The encrypted engine: party 0, the hospital, of dealt two-party computation; it dials out only.

Bundles are fetched ahead by a thread and kept in memory, each with its open connection to party 1. A bundle is marked
as spent when it arrives, before party 1 hears of it: one that is lost with the process is burned, never used again.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.core import failpoint, logs, tls
from dicom_node.core.credentials import Credentials
from dicom_node.core.errors import ConfigError, IntegrityError, Unavailable
from dicom_node.core.settings import InferenceSettings

from . import keyfile, selftest
from .card import ModelCard
from .distrust import Distrust
from .engine import Inference, inference_of, input_of
from .protocol.party0 import HospitalSession, Terms
from .protocol.plan import Plan
from .protocol.ring import Words
from .protocol.session import State
from .spent import SpentLedger
from .transport.channel import Channel
from .transport.connections import Connections

log = logs.get(__name__)
#: A bundle is dropped when this share of party 1's patience is over, so that none is used at the last moment.
FRESH_SHARE = 0.8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


@dataclass(frozen=True)
class _Prepared:
    """A bundle that is ready on both sides."""

    session: HospitalSession
    channel: Channel
    stale_at: float

    def drop(self) -> None:
        """Burn it unused."""
        self.session.abort()
        self.channel.close()


class DealtEngine:
    """Evaluates the private part with party 1 and the dealer; see `secure_infer.engine.Engine`.

    Parameters
    ----------
    card : ModelCard
        Of the active model, verified.
    settings : InferenceSettings
        Where party 1 and dealer are, this site's certificate, time-outs, and how many bundles to fetch ahead.
    state_dir : Path
        Takes the ledger ``spent.sqlite3`` and the key to which dealers seal seeds, ``sealing.key``.
    clock, monotonic : callable
        Seconds since the epoch, and seconds of a clock that is never set back.

    Raises
    ------
    ConfigError
        A setting or file is missing, or the card's program does not fit.
    """

    name = "dealt-2pc"

    def __init__(
        self,
        card: ModelCard,
        settings: InferenceSettings,
        state_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if settings.party is None or settings.dealer is None or settings.tls is None:
            raise ConfigError("the encrypted engine needs inference.party, inference.dealer and inference.tls")
        self._credentials, timeout_s = Credentials(settings.tls), settings.timeout_s
        self._dealer = Connections(settings.dealer, self._credentials, "the dealer", timeout_s, clock=monotonic)
        self._party = Connections(settings.party, self._credentials, "party 1", timeout_s, clock=monotonic)
        self._prefetch = settings.prefetch
        self._audit_one_in = settings.audit_one_in
        self._distrust = Distrust(state_dir / "dealer-distrusted.json", settings.dealer.fingerprint)
        self._clock, self._monotonic = clock, monotonic
        self._hospital = bytes.fromhex(tls.fingerprint(settings.tls.certificate))
        self._plan = Plan(card.suffix)
        selftest.run(self._plan.ring.bits)
        self._ledger = SpentLedger(state_dir / "spent.sqlite3")
        self._terms = Terms(
            self._plan,
            hashlib.sha256(card.canonical()).digest(),
            self._hospital,
            bytes.fromhex(settings.party.fingerprint),
            bytes.fromhex(settings.dealer.fingerprint),
            keyfile.sealing_key(state_dir / "sealing.key"),
            self._spend,
            dict[bytes, list[Words]](),
        )
        self._ready: deque[_Prepared] = deque()
        self._wanted = settings.prefetch
        self._changed = threading.Condition()
        self._closed = False
        self._filler = threading.Thread(target=self._fill, name="bundles", daemon=True)
        if self._prefetch:
            self._filler.start()

    def infer(self, features: NDArray[np.float64]) -> Inference:
        """Evaluate the features of one image; see `Engine.infer` for shapes and errors.

        Raises
        ------
        IntegrityError
            The opened output cannot be the model's (``output-out-of-range``): party 1 or the dealer cheats. The dealer
            was caught cheating (``bundle-forged``, and from then on ``dealer-distrusted``).
        """
        image = input_of(self._plan.program, features)
        if self._credentials.follow():
            self._drop_all()  # they hold connections that were judged by what was in force before
        prepared = self._take()
        if prepared is not None:
            try:
                return self._query(prepared, image)
            except Unavailable as error:
                if error.code != "connection-closed":
                    raise
                # Party 1 was restarted since: what was fetched ahead is burned on its side, a fresh bundle is not.
                log.warning("prefetched-bundle-lost", bundle_id=prepared.session.bundle.hex(), **logs.describe(error))
                self._drop_all()
        return self._query(self._prepare(), image)

    def _query(self, prepared: _Prepared, image: NDArray[np.float64]) -> Inference:
        session, channel = prepared.session, prepared.channel
        started = time.perf_counter()
        try:
            channel.send(session.query(image))
            while session.state is not State.DONE:
                session.meanwhile()
                for answer in session.answers(channel.receive(session.limit)):
                    channel.send(answer)
        except BaseException:
            prepared.drop()
            raise
        sent = channel.sent + channel.received
        self._party.keep(channel)
        assert session.outputs is not None
        seconds = round(time.perf_counter() - started, 5)
        log.info("query-answered", bundle_id=session.bundle.hex(), duration_s=seconds, bytes=sent)
        return replace(inference_of(session.outputs), bundle_id=session.bundle.hex())

    def _prepare(self) -> _Prepared:
        """Do the offline phase of one bundle; those that are drawn for an audit are given up for it."""
        while True:
            prepared = self._offline()
            if not self._audit_one_in or secrets.randbelow(self._audit_one_in):
                break
            self._audit(prepared)
        try:
            for covered in prepared.session.covers():
                prepared.channel.send(covered)
            if self._plan.gates:
                prepared.session.handle(prepared.channel.receive(prepared.session.limit))
        except BaseException:
            prepared.drop()
            raise
        return prepared

    def _offline(self) -> _Prepared:
        """Get a bundle to both sides; nothing tells the dealer, or party 1, whether it will be audited."""
        self._distrust.check()
        session = HospitalSession(self._terms)
        try:
            channel, bundle = self._dealer.ask(session.begin(), session.limit)
            self._dealer.keep(channel)
            opening = session.handle(bundle)
            assert opening is not None
            channel, ready = self._party.ask(opening, session.limit, session.ahead)
        except BaseException:
            session.abort()
            raise
        prepared = _Prepared(session, channel, 0.0)
        try:
            session.handle(ready)
        except BaseException:
            prepared.drop()
            raise
        return replace(prepared, stale_at=self._monotonic() + FRESH_SHARE * session.lifetime_s)

    def _audit(self, prepared: _Prepared) -> None:
        session, channel = prepared.session, prepared.channel
        try:
            channel.send(session.audit())
            session.handle(channel.receive(session.limit))
        except BaseException as error:
            prepared.drop()
            if isinstance(error, IntegrityError) and error.code == "bundle-forged":
                self._distrust.note(session.bundle, session.signed, self._clock())
            raise
        log.info("bundle-audited", bundle_id=session.bundle.hex())
        self._party.keep(channel)

    def _spend(self, bundle: bytes) -> None:
        self._ledger.spend(bundle, self._terms.party, self._clock())
        failpoint.reach("party0-spent")

    def _take(self) -> _Prepared | None:
        """Take the oldest bundle that is still fresh."""
        with self._changed:
            self._drop_stale()
            found = self._ready.popleft() if self._ready else None
            self._wanted = self._prefetch
            self._changed.notify_all()
        return found

    def _drop_stale(self) -> None:
        """Drop bundles that waited too long; they are replaced after the next query, not through an idle night."""
        while self._ready and self._ready[0].stale_at <= self._monotonic():
            self._ready.popleft().drop()
            self._wanted -= 1

    def _drop_all(self) -> None:
        with self._changed:
            while self._ready:
                self._ready.popleft().drop()
            self._changed.notify_all()

    def _fill(self) -> None:
        """Keep the wanted number of bundles ready; a failure pauses, since `infer` tells it to the caller anyway."""
        pause_s = FIRST_PAUSE_S
        while True:
            with self._changed:
                while not self._closed and len(self._ready) >= self._wanted:
                    self._changed.wait(timeout=FIRST_PAUSE_S)
                    self._drop_stale()
                if self._closed:
                    return
            try:
                prepared = self._prepare()
            except Exception as error:
                log.warning("prefetch-paused", duration_s=pause_s, **logs.describe(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, timeout=pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                continue
            pause_s = FIRST_PAUSE_S
            with self._changed:
                if self._closed:
                    prepared.drop()
                    return
                self._ready.append(prepared)

    def close(self) -> None:
        """Burn what was fetched ahead and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._filler.is_alive():
            self._filler.join(timeout=5.0)
        self._drop_all()
        self._dealer.close()
        self._party.close()
        self._ledger.close()
