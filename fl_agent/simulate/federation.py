"""A whole federation in one process: agents with ledgers and records of their own, a coordinator, and real frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.core.database import Database
from dicom_node.core.training_settings import FederationSettings, PrivacySettings
from secure_infer.models import signing_key

from ..agent.agent import Agent
from ..agent.rules import Rules
from ..agent.runs import Runs
from ..coordinator.candidate import Publisher
from ..coordinator.coordinator import Coordinator
from ..coordinator.patience import Timing
from ..coordinator.records import Records
from ..courier.courier import Courier, Handler
from ..courier.in_process import InProcessCourier
from ..learning.plan import Member, Plan
from ..learning.server import Training
from ..learning.site import Examples
from ..ledger.ledger import Ledger
from ..runreport import record
from ..secagg.rounds import RoundLedger


def public(key: Ed25519PrivateKey) -> str:
    """Name an identity: its public half, hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


@dataclass(frozen=True)
class Hospital:
    """One site's state.

    Attributes
    ----------
    agent : Agent
    database : Database
    ledger : Ledger
    """

    agent: Agent
    database: Database
    ledger: Ledger


class Federation:
    """Hospitals and their coordinator in one process; use it as a context.

    Parameters
    ----------
    folder : Path
        Takes everybody's state.
    sites : mapping of str to Examples
        At least three.
    privacy : PrivacySettings
        Every site's budget.
    publisher : Publisher, optional
        Makes the candidate.
    timing : Timing
    courier : callable
        From the sites' handlers to the courier.

    Attributes
    ----------
    members : tuple of Member
    hospitals : dict of str to Hospital
    coordinator : Coordinator
    records : Records
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, Examples],
        privacy: PrivacySettings,
        publisher: Publisher | None = None,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        courier: Callable[[Mapping[str, Handler]], Courier] = InProcessCourier,
    ) -> None:
        self._folder, self._sites, self._privacy, self._timing = folder, dict(sites), privacy, timing
        self._publisher, self._make_courier = publisher, courier
        for name in sites:
            (folder / name).mkdir(parents=True, exist_ok=True)
        # Kept, so that a run goes on after whoever simulates was killed.
        self._keys = {name: signing_key(folder / name / "identity.pem") for name in sites}
        self._coordinator_key = signing_key(folder / "coordinator.pem")
        self._stack = ExitStack()
        self.members = tuple(
            Member(name=name, identity=public(self._keys[name]), patients=rows.count) for name, rows in sites.items()
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self.hospitals = {name: self._hospital(name) for name in self._sites}
            self.start_coordinator()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, plan: Plan, progress: Callable[[int, int], None] = lambda done, sums: None) -> Training:
        """Run a plan to its end and return what the coordinator knows then.

        Parameters
        ----------
        plan : Plan
            Of `members`.
        progress : callable
            Called with (sums done, of all).

        Raises
        ------
        Unavailable
            A site refused, and too few are left.
        """
        self.coordinator.open(plan)
        while self.coordinator.run_once():
            current = self.records.newest()
            assert current is not None
            progress(current.training.done, plan.sums)
        current = self.records.newest()
        assert current is not None
        return current.training

    def start(self, name: str) -> None:
        """Start a site's agent anew: what it knows is what lies on the disk."""
        self.hospitals[name] = self._hospital(name)

    def start_coordinator(self) -> None:
        """Start the coordinator, also anew."""
        self.records = Records(self._folder / "coordinator.sqlite3")
        self._stack.callback(self.records.close)
        self.coordinator = Coordinator(
            self._coordinator_key,
            self.records,
            self._make_courier({name: partial(self._handle, name) for name in self._sites}),
            self._folder / record.RUNS,
            self._publisher,
            self._timing,
        )

    def _handle(self, name: str, frame: bytes) -> bytes:
        return self.hospitals[name].agent.handle(frame)

    def _hospital(self, name: str) -> Hospital:
        database = Database(f"sqlite:///{self._folder / name / 'site.sqlite3'}")
        self._stack.callback(database.close)
        if not (self._folder / name / "site.sqlite3").exists():
            database.migrate()
        ledger = Ledger(database, self._privacy)
        rounds = RoundLedger(self._folder / name / "rounds.sqlite3")
        self._stack.callback(rounds.close)
        federation = FederationSettings(
            identity_file=self._folder / name / "identity.pem",
            coordinator=public(self._coordinator_key),
            roster=tuple(public(key) for key in self._keys.values()),
            minimum_cohort=3,
            minimum_patients=1,
            maximal_epsilon=self._privacy.epsilon,
        )
        agent = Agent(
            self._keys[name],
            Rules(federation, self._privacy),
            rounds,
            Runs(database, ledger),
            lambda _: self._sites[name],
        )
        return Hospital(agent, database, ledger)
