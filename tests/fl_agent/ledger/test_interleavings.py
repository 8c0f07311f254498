"""Whatever processes do and wherever they stop, the ledger says at least what ran, and never more than the limit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from dicom_node.core.database import Database
from dicom_node.core.errors import Refused
from fl_agent.ledger.accountant import loss, total
from fl_agent.ledger.ledger import Ledger
from fl_agent.ledger.mechanisms import Spending
from secure_infer.card import Bound, Distributed
from tests.fl_agent.ledger.site import LIMITS, training


def with_steps(terms: Spending, steps: int) -> Spending:
    return terms.model_copy(update={"steps": steps})


SUMMED = Distributed(
    name="head", patients=500, sampling_rate=0.1, steps=60, variance=10**6, honest=3, dimension=40,
    sensitivity_squared=10**6,
)  # fmt: skip
TERMS = st.sampled_from([training(20), training(400, 1.5), SUMMED, Bound(name="x", patients=9, epsilon=0.3, steps=2)])


class Site(RuleBasedStateMachine):
    """Agents that train one step at a time, by the rules; `ran` is what really happened to the data."""

    tokens = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database(f"sqlite:///{Path(self.folder.name) / 'records.sqlite3'}")
        self.database.migrate()
        self.ledger = Ledger(self.database, LIMITS)
        self.terms: dict[str, Spending] = {}
        self.ran: dict[str, int] = {}
        self.closed: set[str] = set()

    @rule(target=tokens, terms=TERMS)
    def reserve(self, terms: Spending):
        try:
            token = self.ledger.reserve(terms, run="r", model="m")
        except Refused:
            return multiple()
        self.terms[token] = terms
        return token

    @rule(token=tokens)
    def begin(self, token: str) -> None:
        try:
            self.ledger.begin(token)
            self.ran[token] = 0
        except Refused:
            assert token in self.ran or token in self.closed

    @rule(token=tokens, steps=st.integers(1, 300))
    def train(self, token: str, steps: int) -> None:
        if token in self.ran and token not in self.closed:
            self.ran[token] = min(self.terms[token].steps, self.ran[token] + steps)

    @rule(token=tokens)
    def spend(self, token: str) -> None:
        if self.ran.get(token, 0):
            try:
                self.ledger.spend(token, self.ran[token])
                self.closed.add(token)
            except Refused:
                assert token in self.closed

    @rule(token=tokens)
    def release(self, token: str) -> None:
        try:
            self.ledger.release(token)
            assert token not in self.ran
            self.closed.add(token)
        except Refused:
            assert token in self.ran or token in self.closed

    @rule()
    def crash(self) -> None:
        """Everything in memory is gone: what is open stays so, and nobody can go on with it."""
        self.closed |= set(self.terms)
        self.database.close()
        self.ledger = Ledger(self.database, LIMITS)

    @invariant()
    def the_ledger_says_at_least_what_ran_and_at_most_the_limit(self) -> None:
        held = total(loss(one.terms) for one in self.ledger.entries() if one.counts)
        ran = total(loss(with_steps(self.terms[token], steps)) for token, steps in self.ran.items() if steps)
        assert (held.curve >= ran.curve - 1e-12).all()
        assert held.delta >= ran.delta
        assert ran.lifelong(LIMITS.delta) <= held.lifelong(LIMITS.delta) + 1e-12
        assert held.lifelong(LIMITS.delta) <= LIMITS.epsilon

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()


TestSite = Site.TestCase
TestSite.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
