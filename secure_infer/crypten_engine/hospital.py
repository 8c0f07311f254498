"""The engine CrypTen at the hospital, party 0: dials out only, and alone learns the output.

Tuples are dealt ahead of the online phase, one bundle for each query; queries of several threads wait for each other,
since a CrypTen process holds one. A bundle is marked as spent on both sides before the first online byte, and a query
that fails burns it with its process.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.core import logs
from dicom_node.core.credentials import Credentials
from dicom_node.core.errors import ConfigError, IntegrityError, ProtocolError, Refused
from dicom_node.core.settings import InferenceSettings

from ..card import ModelCard
from ..engine import Inference, inference_of, input_of
from ..protocol.messages import LARGEST_FAILURE, TupleDeal, TupleOpen, TupleReady, TupleSeed, Vector, overhead
from ..protocol.party0 import TOLERANCE
from ..protocol.plan import Plan
from ..spent import SpentLedger
from ..transport.channel import Channel
from .pipe import Kind
from .process import START_S, CryptenProcess, require_installed
from .relay import Relay
from .tuples import RING, require_one_scale

log = logs.get(__name__)


@dataclass(frozen=True)
class _Prepared:
    """A bundle that is ready on both sides."""

    bundle: bytes
    seeds: bytes
    channel: Channel


class CryptenEngine:
    """Evaluates the private part with party 1 by CrypTen; see `secure_infer.engine.Engine`.

    Parameters
    ----------
    card : ModelCard
        Of the active model, verified.
    settings : InferenceSettings
        Where party 1 and dealer are, this site's certificate and the time-out.
    state_dir : Path
        Takes the ledger ``spent.sqlite3``.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    ConfigError
        CrypTen is not installed (``engine-not-installed``), or a setting is missing.
    IntegrityError
        CrypTen's self-test failed (``self-test``).
    """

    name = "crypten"

    def __init__(
        self,
        card: ModelCard,
        settings: InferenceSettings,
        state_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if settings.party is None or settings.dealer is None or settings.tls is None:
            raise ConfigError("the engine crypten needs inference.party, inference.dealer and inference.tls")
        require_installed()
        plan = Plan(card.suffix)
        require_one_scale(plan)
        self._plan = plan
        self._party, self._dealer = settings.party, settings.dealer
        self._credentials = Credentials(settings.tls)
        self._timeout_s = settings.timeout_s
        self._clock = clock
        self._model = hashlib.sha256(card.canonical()).digest()
        self._ledger = SpentLedger(state_dir / "spent.sqlite3")
        self._lock = threading.Lock()
        self._child = CryptenProcess(self._timeout_s)
        self._broken = False

    def infer(self, features: NDArray[np.float64]) -> Inference:
        """Evaluate the features of one image; see `Engine.infer` for shapes and errors.

        Raises
        ------
        IntegrityError
            The opened output cannot be the model's (``output-out-of-range``): party 1 or the dealer cheats.
        """
        image = input_of(self._plan.program, features)
        with self._lock:
            self._credentials.follow()
            return self._query(self._prepare(), image)

    def _prepare(self) -> _Prepared:
        """Do the offline phase of one bundle."""
        party = bytes.fromhex(self._party.fingerprint)
        with Channel.dial(self._dealer, self._credentials.client, "the dealer", self._timeout_s) as dealer:
            dealer.send(TupleDeal(os.urandom(16), self._model, party, self._plan.encoded))
            dealt = dealer.receive(max(overhead(TupleSeed), LARGEST_FAILURE))
        if not isinstance(dealt, TupleSeed):
            raise ProtocolError("the dealer sent something else than a seed", code="out-of-order")
        self._ledger.spend(dealt.bundle, party, self._clock())
        zero_seed = os.urandom(32)
        channel = Channel.dial(self._party, self._credentials.client, "party 1", self._timeout_s)
        try:
            channel.send(TupleOpen(dealt.bundle, self._model, zero_seed))
            # Party 1 may have to start its process first.
            ready = channel.receive(max(overhead(TupleReady), LARGEST_FAILURE), START_S + self._timeout_s)
            if not isinstance(ready, TupleReady) or ready.bundle != dealt.bundle:
                raise ProtocolError("party 1 sent something else than that it is ready", code="out-of-order")
        except BaseException:
            channel.close()
            raise
        return _Prepared(dealt.bundle, dealt.seed + zero_seed, channel)

    def _query(self, prepared: _Prepared, image: NDArray[np.float64]) -> Inference:
        plan, channel = self._plan, prepared.channel
        started = time.perf_counter()
        with channel:
            child = self._process()
            try:
                child.load(self._model, plan.program, 0)
                child.pipe.send(Kind.SEEDS, prepared.seeds)
                child.pipe.send(Kind.RUN, RING.to_bytes([RING.encode(image, plan.program.fraction_bits)]))
                relay = Relay(child.pipe, channel, prepared.bundle, speaks_first=True)
                ours = relay.run()
                theirs = relay.receive(len(ours))
            except BaseException:
                self._broken = True
                child.close()
                raise
        inference = replace(self._open(ours, theirs), bundle_id=prepared.bundle.hex())
        log.info(
            "query-answered",
            bundle_id=inference.bundle_id,
            duration_s=round(time.perf_counter() - started, 5),
            bytes=channel.sent + channel.received,
        )
        return inference

    def _process(self) -> CryptenProcess:
        """Return the child, started again where a query broke it."""
        if self._broken:
            self._child = CryptenProcess(self._timeout_s)
            self._broken = False
        return self._child

    def _open(self, ours: Vector, theirs: Vector) -> Inference:
        plan, program = self._plan, self._plan.program
        shapes = [plan.shapes[one] for one in plan.opened]
        pairs = zip(RING.split(ours, shapes), RING.split(theirs, shapes), strict=True)
        opened, *guard = (mine + other for mine, other in pairs)
        if any(one.any() for one in guard):
            raise Refused("this image leaves the range in which the model is proven", code="features-out-of-range")
        values = RING.decode(opened, program.fraction_bits)
        if (np.abs(values) > TOLERANCE * program.output_bound).any():
            raise IntegrityError(
                "the opened output is beyond the model's bound: party 1 or the dealer did not follow the protocol",
                code="output-out-of-range",
            )
        return inference_of(values)

    def close(self) -> None:
        """End the child."""
        self._child.close()
        self._ledger.close()
