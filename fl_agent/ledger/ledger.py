"""The lifelong privacy ledger of a site: a privacy filter (Rogers et al. 2016, arXiv 1605.08294) that is durable.

Budget is taken before data are touched, and comes back only where they provably were not. A process that dies leaves
its reservation counted: a crash costs budget and never privacy.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from dicom_node.core import failpoint
from dicom_node.core.audit import Outcome
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError, Refused
from dicom_node.core.training_settings import PrivacySettings

from . import accountant
from .entries import BEFORE, Entry, State, append, entries, lock, note
from .mechanisms import Spending

#: The one set of a site that does not promise more: everybody who ever was in its training set.
SITE = "site"
LONGEST = 64


class Ledger:
    """The ledger of one site; any number of processes may hold one on the same database.

    Parameters
    ----------
    database : Database
        The site's.
    limits : PrivacySettings
        Over the life of the site, for each patient set.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, database: Database, limits: PrivacySettings, clock: Callable[[], float] = time.time) -> None:
        self._database, self.limits, self._clock = database, limits, clock

    def reserve(self, terms: Spending, *, run: str, model: str, patient_set: str = SITE) -> str:
        """Take budget, durably, for all steps of a mechanism.

        Parameters
        ----------
        terms : Spending
            `steps` is the largest number that may run.
        run, model : str
            Names, 1 to 64 characters: of the run or search, and of the model that it trains.
        patient_set : str
            Different names promise that no patient is ever in both, for the life of the site.

        Returns
        -------
        str
            The reservation's token, for `begin`.

        Raises
        ------
        Refused
            The site's limit would be exceeded (``privacy-budget``); nothing is taken.
        ConfigError
            Delta is so large that publishing one patient whole would satisfy it, or nobody says how many patients there
            are (``delta``), or a name has an impossible length (``ledger-name``).
        IntegrityError
            The ledger was altered.
        """
        if not all(1 <= len(name) <= LONGEST for name in (run, model, patient_set)):
            raise ConfigError(f"run, model and patient set have names of 1 to {LONGEST} characters", code="ledger-name")
        if terms.patients is None:
            raise ConfigError("a reservation must say how many patients the set has", code="delta")
        if self.limits.delta * terms.patients >= 1:
            raise ConfigError(
                f"training.privacy.delta must be below 1 / {terms.patients} patients: lower it", code="delta"
            )
        now = self._clock()
        entry = Entry(secrets.token_hex(16), patient_set, run, model, terms, State.RESERVED, False, now)
        with self._database.write() as connection:
            lock(connection)
            held = [one for one in entries(connection).values() if one.counts and one.patient_set == patient_set]
            refusal = self._refusal(held, [terms])
            if refusal is None:
                append(connection, entry, now)
                failpoint.reach("ledger-written")
            else:
                note(connection, "privacy-refused", {"run": run}, now, Outcome.MINOR_FAILURE)
        if refusal is not None:
            raise refusal
        failpoint.reach("ledger-committed")
        return entry.token

    def require(self, terms: Sequence[Spending], *, patient_set: str = SITE) -> None:
        """Make sure that all of these could be reserved together; nothing is taken.

        Raises
        ------
        Refused
            The site's limit would be exceeded (``privacy-budget``).
        IntegrityError
            The ledger was altered.
        """
        held = [one for one in self.entries() if one.counts and one.patient_set == patient_set]
        refusal = self._refusal(held, terms)
        if refusal is not None:
            raise refusal

    def begin(self, token: str) -> None:
        """Note, durably, that the data will be touched now; from here on the budget is gone.

        Raises
        ------
        Refused
            The token is unknown (``unknown-reservation``) or not in the state RESERVED (``reservation-state``).
        """
        self._move(token, State.BEGUN)

    def spend(self, token: str, steps: int | None = None) -> None:
        """Close a reservation that was begun, giving back steps that never began.

        Parameters
        ----------
        token : str
        steps : int, optional
            Steps whose gradient was begun, from 1; all where absent.

        Raises
        ------
        Refused
            As `begin`; the state must be BEGUN.
        ConfigError
            More steps than were reserved, or none (``ledger-steps``).
        """
        self._move(token, State.SPENT, steps)

    def release(self, token: str) -> None:
        """Give back a reservation that was never begun.

        Raises
        ------
        Refused
            As `begin`: whatever was begun may have touched the data, and stays counted.
        """
        self._move(token, State.RELEASED)

    def entries(self) -> list[Entry]:
        """Read and check all reservations, oldest first; IntegrityError where a row was altered."""
        with self._database.read() as connection:
            lock(connection)  # or a row could come between PostgreSQL's reads of the table and of its noted end
            return list(entries(connection).values())

    def _move(self, token: str, state: State, steps: int | None = None) -> None:
        now = self._clock()
        with self._database.write() as connection:
            lock(connection)
            entry = _in_state(connection, token, BEFORE[state])
            if steps is not None:
                if not 1 <= steps <= entry.terms.steps:
                    raise ConfigError(
                        f"{steps} steps of {entry.terms.steps} reserved cannot have run", code="ledger-steps"
                    )
                entry = dataclasses.replace(entry, terms=entry.terms.model_copy(update={"steps": steps}))
            append(connection, dataclasses.replace(entry, state=state), now)
            failpoint.reach("ledger-written")
        failpoint.reach("ledger-committed")

    def _refusal(self, held: list[Entry], terms: Sequence[Spending]) -> Refused | None:
        """Say why the limits do not allow the mechanisms, or None."""
        delta = self.limits.delta
        for alone, limit in ((False, self.limits.epsilon), (True, self.limits.epsilon_alone)):
            if limit is None:
                continue
            losses = [accountant.loss(one.terms, alone=alone) for one in held]
            wanted = [accountant.loss(one, alone=alone) for one in terms]
            after = accountant.total([*losses, *wanted]).lifelong(delta)
            # Written so that a sum that is no number is refused, too.
            if not after <= limit:
                used = accountant.total(losses).lifelong(delta)
                colluding = " if every other hospital colludes" if alone else ""
                return Refused(
                    f"the privacy budget has epsilon {max(0.0, limit - used):.3f} of {limit:g} left{colluding} "
                    f"({used:.3f} used or reserved, delta {delta:g}); with this run it would be {after:.3f}: "
                    "take fewer steps or more noise",
                    code="privacy-budget",
                )
        return None


def _in_state(connection: sa.Connection, token: str, needed: State) -> Entry:
    entry = entries(connection).get(token)
    if entry is None:
        raise Refused("no reservation has this token: reserve first", code="unknown-reservation")
    if entry.state is not needed:
        raise Refused(f"the reservation is {entry.state.value} and not {needed.value}", code="reservation-state")
    return entry
