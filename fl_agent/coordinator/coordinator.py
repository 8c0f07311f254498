"""Joining, rounds and end of a federated run: the server of McMahan et al. 2017 (arXiv 1602.05629), killed at any time.

::

    JOINING   the plan goes to all members                until all answered or the time is up
    ROUNDS    one secure sum after the other              a lost round costs its number and is repeated
    END       the candidate is published, sites are told

Where a run stands follows from `records` alone, so a killed coordinator goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core import failpoint, logs
from dicom_node.core.errors import ProtocolError, Unavailable

from ..courier.courier import Courier
from ..learning import envelope as wire
from ..learning import server as learning
from ..learning import terms
from ..learning.envelope import Envelope, Kind
from ..learning.plan import Plan
from ..runreport.record import End
from ..secagg.server import Server
from .candidate import Publisher
from .journal import Journal
from .patience import Patience, Timing
from .records import ACCEPTED, FINISHED, Records, Run
from .secure_sum import Course, SecureSum

log = logs.get(__name__)
#: What a site says that has lost the plan, as after its database was made anew.
FORGOTTEN = "unknown-run"
#: What a site says that can take no part in any further round; other reasons may pass.
FINAL = frozenset({"contributions-used", "run-over"})
#: How often one process tells the end; with the pauses of `loops.run` that is a minute, and a relay is back in less.
FAREWELLS = 6


class Coordinator:
    """The coordinator of one run at a time.

    Parameters
    ----------
    identity : Ed25519PrivateKey
        Its public half is what the sites pinned.
    records : Records
    courier : Courier
    folder : Path
        Holds a folder of records for each run.
    publisher : Publisher or None
        Makes the signed candidate; None ends a run without one.
    timing : Timing
    clock : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        identity: Ed25519PrivateKey,
        records: Records,
        courier: Courier,
        folder: Path,
        publisher: Publisher | None,
        timing: Timing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity, self._records, self._courier = identity, records, courier
        self._journal = Journal(folder, clock)
        self._publisher, self._timing, self._clock = publisher, timing, clock
        self._patience = Patience()
        self._farewells, self._unanswered = 0, frozenset[str]()

    def open(self, plan: Plan) -> None:
        """Begin a run; `run_once` does the rest.

        Raises
        ------
        ConfigError
            A run for this version of the model is there already (``run-exists``).
        """
        now = self._clock()
        self._records.open(plan, now)
        self._farewells, self._unanswered = 0, frozenset()
        failpoint.reach("coordinator-opened")

    def folder(self, plan: Plan) -> Path:
        """Return where a run's records for people are."""
        return self._journal.folder(plan)

    def run_once(self) -> bool:
        """Do the next piece of work of the newest run: an exchange of plans, a round, or its end.

        Returns
        -------
        bool
            Whether there was anything to do.

        Raises
        ------
        Unavailable
            Too few sites can be reached or answered; call again later.
        """
        current = self._records.newest()
        if current is None:
            return False
        if current.over:
            return self._tell_the_end(current)
        self._journal.begun(current.plan)
        if learning.finished(current.plan, current.training):
            self._finish(current)
            return True
        if self._propose(current):
            return True
        self._round(current)
        return True

    def _propose(self, current: Run) -> bool:
        """Bring the plan to connected sites that have not answered; return whether one did."""
        waiting = self._courier.connected() & {name for name, answer in current.answers.items() if not answer}
        left = current.at + self._timing.joining - self._clock()
        joining = not current.number and left > 0
        # Rests are counted in rounds: where there can be none yet or without these sites, they would never end.
        rested = not joining and len(current.accepted) >= self._needed(current.plan)
        asked = self._patience.asked(waiting, current.number + 1) if rested else waiting
        envelope = Envelope(Kind.PLAN, bytes.fromhex(current.plan.run), current.plan.content)
        # In parts, so that whoever connects while a silent one is waited for is asked long before the time is up.
        wait = min(left, self._patience.wait(asked, self._timing.stage)) if joining else self._timing.probe
        answers = self._ask(current, asked, envelope, wait)
        for name, code in answers:
            self._records.answered(current.plan, name, code or ACCEPTED)
        if answers:
            return True
        if joining and not all(current.answers.values()):
            raise Unavailable("some sites have not answered to the plan yet", code="joining")
        self._require_enough(current, current.accepted)
        return False

    def _require_enough(self, current: Run, sites: Collection[str]) -> None:
        """Make sure that a cohort of these sites has terms."""
        needed = self._needed(current.plan)
        if len(sites) < needed:
            if len(current.answers) - len(current.refused) < needed:
                for name, code in current.refused.items():
                    log.error("run-refused", peer=name, code=code)
                self._end(current, next(iter(current.refused.values())))
                raise Unavailable("too many sites refused the plan: the run is over", code="run-refused")
            raise Unavailable(
                f"{len(sites)} sites can be asked and {needed} are needed; start the others", code="too-few-sites"
            )

    @staticmethod
    def _needed(plan: Plan) -> int:
        return terms.least_cohort(plan)

    def _round(self, current: Run) -> None:
        plan, began = current.plan, time.monotonic()
        there = current.accepted & self._courier.connected()
        sites = self._patience.asked(there, current.number + 1)
        if len(sites) < self._needed(plan):
            sites = sorted(there)  # nobody's time is saved by waiting: those who were silent are asked, too
        self._require_enough(current, sites)
        identities = {one.identity: one.name for one in plan.members if one.name in sites}
        state = current.training.state().encode()
        release = terms.release_at(plan, current.training.done)
        number = self._records.numbered(current, terms.releases(plan).index(release))
        failpoint.reach("coordinator-numbered")
        header = terms.header(
            plan, current.training.done, state, number, [bytes.fromhex(one) for one in identities]
        )  # fmt: skip
        names = {user: identities[key.hex()] for user, key in enumerate(header.cohort, start=1)}
        server = Server(header, self._identity)
        work = SecureSum(server, names, self._courier, self._timing)
        try:
            work.run(state, self._identity, probes=self._patience.probes(sites))
        except (Unavailable, ProtocolError) as error:
            self._records.lost(plan, number, error.code, self._clock())
            self._note_sites(plan, sites, number, work.course)
            raise Unavailable(f"round {number} gave no sum: {error}", code=error.code) from error
        failpoint.reach("coordinator-summed")
        survivors = [one for one in plan.members if one.name in {names[user] for user in server.survivors}]
        training, measured = learning.after(plan, current.training, server.result(), survivors)
        opened = (*current.opened, 0, 0)[: len(terms.releases(plan))]
        counted = tuple(
            min(one.attempts, count + (one is release)) for one, count in zip(terms.releases(plan), opened, strict=True)
        )
        seconds = time.monotonic() - began
        self._journal.summed(plan, training.done, seconds, len(survivors), work.course, measured, counted)
        failpoint.reach("coordinator-recorded")
        self._records.advanced(plan, number, training, len(survivors), self._clock())
        failpoint.reach("coordinator-stored")
        self._note_sites(plan, sites, number, work.course)
        log.info("round-summed", kind=release.name, count=len(survivors), duration_s=round(seconds, 3))

    def _note_sites(self, plan: Plan, sites: Collection[str], number: int, course: Course) -> None:
        for name in sites:
            self._patience.note(name, number, silent=name in course.silent or name in course.refused)
            code = course.refused.get(name)
            if code == FORGOTTEN or code in FINAL:
                self._records.answered(plan, name, "" if code == FORGOTTEN else code)

    def _finish(self, current: Run) -> None:
        plan = current.plan
        version = ""
        if self._publisher is not None:
            self._publisher.publish(plan, current.training)
            version = plan.version
        failpoint.reach("coordinator-published")
        self._journal.ended(plan, End("published" if version else "finished", candidate=version))
        self._records.ended(plan, FINISHED)
        log.info("run-finished", version=version)

    def _end(self, current: Run, code: str) -> None:
        self._journal.ended(current.plan, End("stopped", code=code))
        self._records.ended(current.plan, code)

    def _tell_the_end(self, current: Run) -> bool:
        """Let the sites close their reservations; whoever is away or stays silent is told by the next process.

        Raises
        ------
        Unavailable
            An answer was lost (``untold``), as of a relay that died and will be back, or the courier is down.
        """
        asked = current.untold & self._courier.connected()
        if self._farewells == FAREWELLS or not (asked or self._unanswered):
            return False
        self._farewells += 1
        self._unanswered |= asked  # also where the courier dies below
        envelope = Envelope(Kind.END, bytes.fromhex(current.plan.run))
        for name, code in self._ask(current, asked, envelope, self._timing.stage):
            if not code:
                self._records.told(current.plan, name)
                self._unanswered -= {name}
        if self._unanswered:
            raise Unavailable("some sites have not answered to the run's end yet", code="untold")
        return True

    def _ask(
        self, current: Run, sites: Collection[str], envelope: Envelope, wait: float
    ) -> list[tuple[str, str]]:  # fmt: skip
        """Bring a frame to some sites and return who answered, with the code of a refusal or an empty text."""
        question = envelope.sealed(self._identity)
        keys = {one.name: bytes.fromhex(one.identity) for one in current.plan.members}
        found = []
        if not sites:
            return []
        for name, answer in self._courier.exchange(dict.fromkeys(sorted(sites), question), wait):
            try:
                found.append((name, wire.read_answer(wire.opened(answer, keys[name]), question)))
            except ProtocolError as error:
                log.warning("site-refused", peer=name, **logs.describe(error))
        for name in sites:
            self._patience.note(name, current.number, silent=name not in dict(found))
        return found
