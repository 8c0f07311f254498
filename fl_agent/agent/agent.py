"""A site's end of a federated run: frames in, frames out; a coordinator cannot talk it into anything else.

Order of a contribution: header equal to what the accepted plan gives, round number durable (`secagg.rounds`), budget
begun and contribution counted (`runs`), consent asked anew, and only then a gradient. The process may be killed
anywhere: the round is lost to it, and the next one finds it ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core import failpoint, logs
from dicom_node.core.errors import ProtocolError, Refused

from ..learning import envelope as wire
from ..learning import site, state, terms
from ..learning.envelope import Envelope, Kind
from ..learning.plan import Plan
from ..learning.site import Examples
from ..learning.state import State
from ..randomness import SecureSource
from ..secagg.client import Client
from ..secagg.encode import Values
from ..secagg.frames import Outgoing, open_frame
from ..secagg.header import Header
from ..secagg.messages import RoundHeader
from ..secagg.rounds import RoundLedger
from ..secagg.stages import Stage
from .rules import Rules
from .runs import Runs

log = logs.get(__name__)
#: What is ready and has not been sent yet where a test kills the process, by the stage it is in then.
ANSWERED: Final[Mapping[Stage, failpoint.Place]] = {
    Stage.SHARE_KEYS: "agent-shared",
    Stage.MASKED_INPUT_COLLECTION: "agent-masked",
    Stage.CONSISTENCY_CHECK: "agent-confirmed",
    Stage.DONE: "agent-unmasked",
}


class Agent:
    """One site.

    Parameters
    ----------
    identity : Ed25519PrivateKey
        Its public half is what the other sites pinned.
    rules : Rules
    rounds : RoundLedger
    runs : Runs
    rows : callable
        From a plan to the examples of the patients who agree at this moment.
    """

    def __init__(
        self,
        identity: Ed25519PrivateKey,
        rules: Rules,
        rounds: RoundLedger,
        runs: Runs,
        rows: Callable[[Plan], Examples],
    ) -> None:
        self._identity, self._rules, self._rounds, self._runs, self._rows = identity, rules, rounds, runs, rows
        self._own = identity.public_key().public_bytes_raw()
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._round: tuple[Plan, State] | None = None

    def handle(self, frame: bytes) -> bytes:
        """Take a frame of the coordinator's and return the answer; this never raises.

        Parameters
        ----------
        frame : bytes
            An envelope (`learning.envelope`) or a frame of secure aggregation.

        Returns
        -------
        bytes
            An envelope, a frame of secure aggregation, or empty where there is nothing to say.
        """
        with self._lock:
            try:
                return self._envelope(frame) if wire.is_envelope(frame) else self._secagg(frame)
            except Exception as error:
                log.warning("training-frame-failed", **logs.describe(error))
                return b""

    def _envelope(self, frame: bytes) -> bytes:
        read = wire.opened(frame, self._rules.coordinator)
        try:
            if read.kind is Kind.ROUND:
                return self._open_round(read)
            {Kind.PLAN: self._accept, Kind.END: self._end}[read.kind](read)
        except (Refused, ProtocolError) as error:
            # Other faults are this site's own and may pass: it says nothing, and is asked again.
            log.warning("training-refused", **logs.describe(error))
            return wire.answer(Kind.REFUSED, frame, read.run, error.code).sealed(self._identity)
        return wire.answer(Kind.ACCEPTED, frame, read.run).sealed(self._identity)

    def _secagg(self, frame: bytes) -> bytes:
        if self._client is None or self._round is None:
            raise ProtocolError("a frame of a round that this site is not in came", code="out-of-order")
        try:
            sent = self._client.handle(frame)
            if self._client.stage is Stage.INPUT:
                sent = self._client.contribute(self._contribution(self._client.header, *self._round))
            if self._client.stage in ANSWERED:
                failpoint.reach(ANSWERED[self._client.stage])
        except Exception as error:
            # What went wrong may have to do with the data: it stays here, and the coordinator learns that we left.
            log.warning("training-round-failed", **logs.describe(error))
            sent = self._leave()
        return bytes(sent[0].frame) if sent else b""

    def _accept(self, read: Envelope) -> None:
        plan = Plan.read(read.body)
        if plan.run != read.run.hex():
            raise ProtocolError("a plan came under the name of another run", code="wrong-run")
        try:
            self._rules.check(plan, self._own)
            patients = self._rows(plan).count
            self._rules.check_patients(patients)
            # Terms that no round could have are found now and not after the budget is taken.
            everyone = [bytes.fromhex(one.identity) for one in plan.members]
            for done in range(min(2, plan.sums)):
                terms.header(plan, done, b"", 1, everyone)
            self._runs.accept(plan, patients)
        except Refused as error:
            self._runs.refuse(plan, error.code)
            raise

    def _open_round(self, read: Envelope) -> bytes:
        self._leave()
        plan = self._runs.plan(read.run)
        content, frame = wire.read_opening(read)
        known = state.read(plan, content)
        header = self._header(frame)
        expected = terms.header(plan, known.done, content, header.round, header.cohort)
        if header.content != expected.content:
            raise Refused("the round's terms are not those of the accepted plan", code="wrong-terms")
        self._rules.check(plan, self._own)  # the administrator may have changed them
        if self._runs.left(plan, terms.release_at(plan, known.done)) < 1:
            raise Refused("this site has given all that was reserved for the run", code="contributions-used")
        client = Client(self._identity, self._rules.for_round(plan, header.model), self._rounds)
        (answer,) = client.handle(frame)
        failpoint.reach("agent-entered")
        self._client, self._round = client, (plan, known)
        return bytes(answer.frame)

    @staticmethod
    def _header(frame: bytes) -> Header:
        """Read a header that `Client.handle` will verify."""
        message = open_frame(frame).message()
        if not isinstance(message, RoundHeader):
            raise ProtocolError("a round was opened without a header", code="malformed")
        return Header.decode(message.content)

    def _contribution(self, header: Header, plan: Plan, known: State) -> list[Values]:
        release = terms.release_at(plan, known.done)
        self._runs.take(plan, release, header.round)
        examples = self._rows(plan)
        self._rules.check_patients(examples.count)
        return site.contribution(plan, plan.member(self._own), known, examples, SecureSource())

    def _end(self, read: Envelope) -> None:
        self._leave()
        self._runs.close(read.run)

    def _leave(self) -> list[Outgoing]:
        """Leave the present round and return what tells the coordinator so, without a reason."""
        client, self._client, self._round = self._client, None, None
        return client.abort() if client is not None else []
