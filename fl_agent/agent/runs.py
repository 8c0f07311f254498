"""What this site promised and what it has given: reservations of a run, and a counter that is ahead of every gradient.

Whatever happens, the counter of contributions is at least the number of gradients that were begun, and the ledger
counts at least the counter. A process that dies costs budget and never privacy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from dicom_node.core import failpoint
from dicom_node.core.audit import Outcome
from dicom_node.core.database import Database, federated_run, federated_spending
from dicom_node.core.errors import Refused

from ..learning.plan import Plan
from ..learning.terms import Release, releases, spendings
from ..ledger.entries import Entry, State, note
from ..ledger.ledger import Ledger
from ..ledger.mechanisms import Spending


class Runs:
    """The runs of one site; any number of processes may hold one on the same database.

    Parameters
    ----------
    database : Database
        The site's.
    ledger : Ledger
        On the same database.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, database: Database, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._database, self._ledger, self._clock = database, ledger, clock

    def accept(self, plan: Plan, patients: int) -> None:
        """Reserve, once, all that a plan may cost; harmless for a plan that was accepted before.

        Parameters
        ----------
        plan : Plan
            Which the site's rules allow.
        patients : int
            Of this site.

        Raises
        ------
        Refused
            The budget does not suffice (``privacy-budget``), or the run's name stands for another plan or for a run
            that is over (``run-reused``); nothing is taken.
        """
        known = self._row(plan.run)
        if known is not None:
            if known.plan != plan.content.decode() or known.over:
                raise Refused("a run of this name is over or had another plan", code="run-reused")
            return
        left = self._left_by_a_crash(plan)
        found: list[tuple[str, Release, Spending]] = []
        try:
            for release in releases(plan):
                for terms in spendings(plan, release, patients):
                    token = left.pop(_key(terms), None) or self._ledger.reserve(terms, run=plan.run, model=plan.version)
                    found.append((token, release, terms))
        except Refused:
            for token, _, _ in found:
                self._ledger.release(token)
            raise
        failpoint.reach("agent-reserved")
        now = self._clock()
        with self._database.write() as connection:
            connection.execute(federated_run.insert(), {"run": plan.run, "plan": plan.content.decode(), "at": now})
            rows = [
                {"token": token, "run": plan.run, "release": release.name, "each": terms.steps // release.attempts}
                for token, release, terms in found
            ]
            connection.execute(federated_spending.insert(), rows)
            note(connection, "training-accepted", {"run": plan.run, "plan": plan.digest.hex()}, now)
        failpoint.reach("agent-accepted")

    def refuse(self, plan: Plan, code: str) -> None:
        """Note a plan that this site does not follow."""
        now = self._clock()
        detail = {"run": plan.run, "plan": plan.digest.hex(), "code": code}
        with self._database.write() as connection:
            note(connection, "training-refused", detail, now, Outcome.MINOR_FAILURE)

    def plan(self, run: bytes) -> Plan:
        """Return the plan of a run that goes on.

        Raises
        ------
        Refused
            It was never accepted (``unknown-run``) or is over (``run-over``).
        """
        row = self._row(run.hex())
        if row is None:
            raise Refused("the run was not accepted by this site; the coordinator must propose it", code="unknown-run")
        if row.over:
            raise Refused("the run is over", code="run-over")
        return Plan.read(row.plan.encode())

    def left(self, plan: Plan, release: Release) -> int:
        """Return how many more contributions to a kind of sum are paid for."""
        with self._database.read() as connection:
            taken: list[int] = [row.taken for row in self._spendings(connection, plan, release)]
        return release.attempts - max(taken)

    def take(self, plan: Plan, release: Release, number: int) -> None:
        """Count one contribution, durably; call it BEFORE the data are touched.

        Parameters
        ----------
        number : int
            Of the round, for the audit trail.

        Raises
        ------
        Refused
            All that was reserved is used (``contributions-used``).
        """
        with self._database.read() as connection:
            fresh = [row.token for row in self._spendings(connection, plan, release) if not row.taken]
        states = {one.token: one.state for one in self._ledger.entries()} if fresh else {}
        for token in fresh:
            if states[token] is State.RESERVED:  # else it was begun by a process that died before it counted
                self._ledger.begin(token)
        failpoint.reach("agent-begun")
        now = self._clock()
        with self._database.write() as connection:
            if any(row.taken >= release.attempts for row in self._spendings(connection, plan, release)):
                raise Refused("this site has given all that was reserved for the run", code="contributions-used")
            connection.execute(
                federated_spending.update()
                .where(federated_spending.c.run == plan.run, federated_spending.c.release == release.name)
                .values(taken=federated_spending.c.taken + 1)
            )
            detail = {"run": plan.run, "round": number, "sum": release.name}
            note(connection, "training-contribution", detail, now)
        failpoint.reach("agent-counted")

    def close(self, run: bytes) -> None:
        """End a run: give back what was never begun and steps that never were; harmless the second time."""
        row = self._row(run.hex())
        if row is None or row.over:
            return
        with self._database.read() as connection:
            condition = federated_spending.c.run == run.hex()
            held = connection.execute(sa.select(federated_spending).where(condition)).all()
        states = {one.token: one.state for one in self._ledger.entries()}
        for one in held:
            if states[one.token] is State.RESERVED:
                self._ledger.release(one.token)
            elif states[one.token] is State.BEGUN:
                self._ledger.spend(one.token, max(1, one.taken) * one.each)
            failpoint.reach("agent-settled")
        now = self._clock()
        with self._database.write() as connection:
            connection.execute(federated_run.update().where(federated_run.c.run == run.hex()).values(over=True))
            note(connection, "training-over", {"run": run.hex()}, now)

    def _left_by_a_crash(self, plan: Plan) -> dict[Any, str]:
        """Find reservations of a process that died before it wrote down whose they are: never begun, so still whole."""
        entries: list[Entry] = self._ledger.entries()
        return {
            _key(one.terms): one.token for one in entries if one.run == plan.run and one.state is State.RESERVED
        }  # fmt: skip

    def _row(self, run: str) -> Any:
        with self._database.read() as connection:
            return connection.execute(sa.select(federated_run).where(federated_run.c.run == run)).one_or_none()

    @staticmethod
    def _spendings(connection: sa.Connection, plan: Plan, release: Release) -> list[Any]:
        condition = (federated_spending.c.run == plan.run) & (federated_spending.c.release == release.name)
        return list(connection.execute(sa.select(federated_spending).where(condition)).all())


def _key(terms: Spending) -> str:
    """Tell whether a reservation fits; how many patients agreed at that moment does not matter."""
    return terms.model_copy(update={"patients": None}).model_dump_json()
