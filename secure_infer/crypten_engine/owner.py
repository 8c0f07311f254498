"""Party 1's side of the engine CrypTen: holds the weights in child processes and gives away its share of the output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dicom_node.core.errors import ProtocolError, Unavailable

from ..protocol.messages import (
    LARGEST_FAILURE,
    TupleCorrections,
    TupleFetch,
    TupleOpen,
    TupleReady,
    TupleSeed,
    overhead,
)
from ..protocol.party1 import PrivateModel
from ..transport.channel import Channel
from .pipe import Kind
from .process import CryptenProcess
from .relay import Relay
from .tuples import requests_of, require_one_scale

#: CrypTen processes at once; each holds a model's weights and one bundle of tuples.
PROCESSES = 2


@dataclass(frozen=True)
class Served:
    """What a query was: the model's version, and seconds until party 1 was ready, and from then on."""

    version: str
    offline_s: float
    online_s: float


class Owner:
    """Serves queries of hospitals, as many at once as there are processes; processes start when first needed.

    Parameters
    ----------
    find : callable
        Returns the model of a card's hash; raises ProtocolError when it is not served.
    dial : callable
        Connects to the dealer.
    timeout_s : float
        Longest wait for any one message and for a free process, seconds.
    """

    def __init__(self, find: Callable[[bytes], PrivateModel], dial: Callable[[], Channel], timeout_s: float) -> None:
        self._find = find
        self._dial = dial
        self._timeout_s = timeout_s
        self._free = threading.BoundedSemaphore(PROCESSES)
        self._lock = threading.Lock()
        self._idle: list[CryptenProcess] = []

    def serve(self, opening: TupleOpen, channel: Channel, spend: Callable[[bytes], None]) -> Served:
        """Answer one query.

        Its first share must come as soon as any other message, since the process is taken until then.

        Parameters
        ----------
        spend : callable
            Marks a bundle as used, durably; raises ProtocolError if it was before, Unavailable beyond the quota.

        Raises
        ------
        VeilRayError
            The bundle, and with it the process, is burned.
        """
        model = self._find(opening.model)
        require_one_scale(model.plan)
        started = time.perf_counter()
        spend(opening.bundle)
        with self._process() as child:
            weights, biases = model.weights, model.biases
            tensors = [one for name in weights for one in (weights[name], biases[name])]
            child.load(model.model, model.plan.program, 1, tensors)
            self._fetch(child, model, opening, bytes.fromhex(channel.peer))
            channel.send(TupleReady(opening.bundle))
            ready = time.perf_counter()
            child.pipe.send(Kind.RUN)
            relay = Relay(child.pipe, channel, opening.bundle, speaks_first=False)
            relay.send(relay.run())
        return Served(model.version, ready - started, time.perf_counter() - ready)

    def _fetch(self, child: CryptenProcess, model: PrivateModel, opening: TupleOpen, hospital: bytes) -> None:
        """Take party 1's half of the bundle from the dealer to the child."""
        with self._dial() as dealer:
            dealer.send(TupleFetch(opening.bundle, opening.model, model.plan.digest, hospital))
            seed = dealer.receive(max(overhead(TupleSeed), LARGEST_FAILURE))
            if not isinstance(seed, TupleSeed) or seed.bundle != opening.bundle:
                raise ProtocolError("the dealer sent something else than a seed", code="out-of-order")
            child.pipe.send(Kind.SEEDS, seed.seed + opening.zero_seed)
            for request in requests_of(model.plan.program):
                found = dealer.receive(max(overhead(TupleCorrections) + request.corrections, LARGEST_FAILURE))
                if not isinstance(found, TupleCorrections):
                    raise ProtocolError("the dealer sent something else than corrections", code="out-of-order")
                if found.bundle != opening.bundle or found.layer != request.number:
                    raise ProtocolError("the dealer sent corrections out of order", code="out-of-order")
                if len(found.values) != request.corrections:
                    raise ProtocolError("the dealer sent corrections of the wrong size", code="wrong-size")
                child.pipe.send(Kind.CORRECTIONS, found.values)

    @contextmanager
    def _process(self) -> Iterator[CryptenProcess]:
        if not self._free.acquire(timeout=self._timeout_s):
            raise Unavailable("all CrypTen processes are busy", code="crypten-busy")
        try:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            child = child or CryptenProcess(self._timeout_s)
            try:
                yield child
            except BaseException:
                child.close()
                raise
            with self._lock:
                self._idle.append(child)
        finally:
            self._free.release()

    def close(self) -> None:
        """End the processes that are idle; those in a query end with it."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()
