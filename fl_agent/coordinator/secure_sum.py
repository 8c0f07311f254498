"""One secure sum over a courier: the server's frames out, the sites' answers in, and whoever is silent left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core import logs
from dicom_node.core.errors import ProtocolError

from ..courier.courier import Courier
from ..learning import envelope as wire
from ..secagg.frames import Outgoing
from ..secagg.server import Server
from ..secagg.stages import OVER, Stage
from .patience import Timing

log = logs.get(__name__)


@dataclass
class Course:
    """What happened in a round, as far as a courier may know it.

    Attributes
    ----------
    up, down : Counter of str
        Bytes from and to each site.
    silent : set of str
        Sites that did not answer in time.
    refused : dict of str to str
        Sites that refused the round, and the code of their reason.
    """

    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    silent: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


class SecureSum:
    """Drives a `Server` to its end.

    Parameters
    ----------
    server : Server
        Not started.
    names : mapping of int to str
        From places in the cohort to sites.
    courier : Courier
    timing : Timing
    """

    def __init__(self, server: Server, names: Mapping[int, str], courier: Courier, timing: Timing) -> None:
        self._server, self._names, self._courier, self._timing = server, names, courier, timing
        self.course = Course()

    def run(self, state: bytes, identity: Ed25519PrivateKey, *, probes: bool) -> None:
        """Run all stages; the server holds the sum afterwards.

        Parameters
        ----------
        state : bytes
            What the header is relative to; it travels beside it.
        identity : Ed25519PrivateKey
            The coordinator's.
        probes : bool
            Whether a site is asked that was silent before.

        Raises
        ------
        Unavailable
            Too few sites answered (``below-threshold``), or the courier is down.
        ProtocolError
            A site gave shares that do not fit (``wrong-share``).
        """
        sent: Sequence[Outgoing] = self._server.start()
        # All get the same header, so one envelope is signed for all.
        sealed = wire.opening(self._server.header.run, state, bytes(sent[0].frame)).sealed(identity)
        frames = {self._names[user]: sealed for user, _ in sent}
        sent = self._exchange(frames, self._timing.probe if probes else self._timing.stage)
        while self._server.stage not in OVER:
            computing = self._server.stage is Stage.MASKED_INPUT_COLLECTION
            frames = {self._names[user]: bytes(frame) for user, frame in sent}
            wait = self._timing.contribution if computing else self._timing.stage
            sent = self._exchange(frames, wait)

    def _exchange(self, frames: Mapping[str, bytes], wait: float) -> Sequence[Outgoing]:
        """Bring frames to the sites and return the next stage's."""
        following: list[Outgoing] = []
        answered = set()
        for site, frame in frames.items():
            self.course.down[site] += len(frame)
        for site, answer in self._courier.exchange(frames, wait):
            if site not in frames or site in answered:
                continue  # a courier that makes up answers
            answered.add(site)
            self.course.up[site] += len(answer)
            following += self._taken(site, frames[site], answer)
        self.course.silent |= frames.keys() - answered
        return following if following or self._server.stage in OVER else self._server.proceed()

    def _taken(self, site: str, question: bytes, answer: bytes) -> list[Outgoing]:
        """Give an answer to the server; one that is refused changes nothing, and the round goes on without its site."""
        if not answer:
            return []
        try:
            if not wire.is_envelope(answer):
                return self._server.handle(answer)
            user = {name: user for user, name in self._names.items()}[site]
            opened = wire.opened(answer, self._server.header.cohort[user - 1])
            self.course.refused[site] = wire.read_answer(opened, question)
        except ProtocolError as error:
            log.warning("site-refused", peer=site, **logs.describe(error))
            if self._server.stage is Stage.ABORTED:
                raise
        return []
