"""What an agent does and what it refuses, whatever a coordinator with the right key says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.core import audit
from dicom_node.core.database import audit_event
from dicom_node.core.training_settings import FederationSettings, PrivacySettings
from fl_agent.agent.agent import Agent
from fl_agent.agent.rules import Rules
from fl_agent.agent.runs import Runs
from fl_agent.learning import envelope as wire
from fl_agent.learning import terms
from fl_agent.learning.envelope import Envelope, Kind
from fl_agent.learning.plan import Plan
from fl_agent.learning.server import Training
from fl_agent.learning.site import Examples
from fl_agent.learning.state import State
from fl_agent.ledger.entries import State as Entry
from fl_agent.secagg.frames import frame, open_frame
from fl_agent.secagg.header import Header
from fl_agent.secagg.messages import Abort, AdvertiseKeys
from fl_agent.simulate.federation import Federation
from tests.fl_agent.federations import PRIVACY, federation, finish, plan, reserved, sites
from tests.fl_agent.learning.hospitals import CHANNELS, examples

NAME = "site-0"


class Site:
    """One agent, and a coordinator's key to talk to it."""

    def __init__(self, made: Federation, rules: FederationSettings | None = None) -> None:
        self.made, self.key = made, made._coordinator_key
        self.identity = made._keys[NAME].public_key().public_bytes_raw()
        self.agent = made.hospitals[NAME].agent
        self.rows = made._sites[NAME]
        if rules is not None:
            self.agent = self.with_rules(rules)

    @property
    def rules(self) -> FederationSettings:
        return self.made.hospitals[NAME].agent._rules.federation

    def with_rules(self, rules: FederationSettings, privacy: PrivacySettings = PRIVACY) -> Agent:
        site = self.made.hospitals[NAME]
        runs = Runs(site.database, site.ledger)
        return Agent(self.made._keys[NAME], Rules(rules, privacy), site.agent._rounds, runs, lambda _: self.rows)

    def ask(self, envelope: Envelope, key: Ed25519PrivateKey | None = None) -> str:
        """The code of the answer; "silent" where there is none."""
        question = envelope.sealed(key or self.key)
        answer = self.agent.handle(question)
        if not answer:
            return "silent"
        if not wire.is_envelope(answer):
            return open_frame(answer).kind.__name__
        return wire.read_answer(wire.opened(answer, self.identity), question) or "accepted"

    def propose(self, agreed: Plan) -> str:
        return self.ask(Envelope(Kind.PLAN, bytes.fromhex(agreed.run), agreed.content))

    def open(self, agreed: Plan, number: int = 1, state: State | None = None, header: Header | None = None) -> str:
        known = state or Training.start(agreed).state()
        cohort = [bytes.fromhex(one.identity) for one in agreed.members]
        header = header or terms.header(agreed, known.done, known.encode(), number, cohort)
        opening = frame(header.message(), 0, header.round_id, self.key)
        return self.ask(wire.opening(header.run, known.encode(), opening))


@pytest.fixture
def site(memory: Path) -> Iterator[Site]:
    with federation(memory) as made:
        yield Site(made)


def test_a_plan_is_accepted_and_paid_for_once(site: Site) -> None:
    agreed = plan(site.made)
    assert [site.propose(agreed) for _ in range(3)] == ["accepted"] * 3
    assert reserved(site.made, NAME) == {"mean feature": (Entry.RESERVED, 2), "head": (Entry.RESERVED, 6)}
    site.made.start(NAME)
    site.agent = site.made.hospitals[NAME].agent
    assert site.propose(agreed) == "accepted"
    assert len(site.made.hospitals[NAME].ledger.entries()) == 2
    with site.made.hospitals[NAME].database.read() as connection:
        audit.verify(connection)
        types = [row.event_type for row in connection.execute(audit_event.select())]
    assert types.count("training-accepted") == 1


@pytest.mark.parametrize(("change", "code"), [
    ({"minimum_cohort": 4}, "cohort-too-small"),
    ({"roster": ()}, "unapproved-peer"),
    ({"maximal_epsilon": 2.9}, "epsilon-too-large"),
    ({"maximal_epsilon_alone": 4.0}, "epsilon-too-large"),
    ({"modes": ("site",)}, "privacy-mode"),
    ({"plans": ("0" * 64,)}, "unknown-plan"),
    ({"minimum_patients": 21}, "too-few-patients"),
    ({"coordinator": "0" * 64}, "silent"),
])  # fmt: skip
def test_a_plan_beyond_the_rules_is_refused_and_costs_nothing(site: Site, change: dict, code: str) -> None:
    site.agent = site.with_rules(site.rules.model_copy(update=change))
    agreed = plan(site.made)
    assert site.propose(agreed) == code
    assert reserved(site.made, NAME) == {}
    assert site.open(agreed) == ("silent" if code == "silent" else "unknown-run")


def test_a_plan_that_is_named_is_accepted(site: Site) -> None:
    agreed = plan(site.made)
    site.agent = site.with_rules(site.rules.model_copy(update={"plans": (agreed.digest.hex(),)}))
    assert site.propose(agreed) == "accepted"


def test_a_site_judges_a_plan_at_its_own_delta(site: Site) -> None:
    strict = PrivacySettings(epsilon=8.0, delta=1e-6)
    site.agent = site.with_rules(site.rules.model_copy(update={"maximal_epsilon": 3.1}), strict)
    assert site.propose(plan(site.made)) == "epsilon-too-large"


def test_the_budget_of_a_life_is_asked_after_the_rules(site: Site) -> None:
    site.agent = site.made.hospitals[NAME].agent
    answers = [site.propose(plan(site.made)) for _ in range(8)]
    assert answers[0] == "accepted"
    assert answers[-1] == "privacy-budget"
    ledger = site.made.hospitals[NAME].ledger
    counted = [one for one in ledger.entries() if one.counts]
    # Of a plan that was refused halfway nothing is kept.
    assert len(counted) == 2 * answers.count("accepted")


def test_a_plan_for_others_is_refused(site: Site, memory: Path) -> None:
    with federation(memory / "others") as others:
        assert site.propose(plan(others)) == "not-a-member"


def test_a_name_stands_for_one_plan(site: Site) -> None:
    agreed = plan(site.made)
    assert site.propose(agreed) == "accepted"
    assert site.propose(agreed.model_copy(update={"version": "2.0"})) == "run-reused"
    other = Envelope(Kind.PLAN, bytes(16), agreed.content)
    assert site.ask(other) == "wrong-run"


def with_terms(header: Header, **change: object) -> Header:
    return dataclasses.replace(header, privacy=dataclasses.replace(header.privacy, **change))


@pytest.mark.parametrize("alter", [
    lambda header: with_terms(header, epsilon=0.1),
    lambda header: with_terms(header, honest=2),
    lambda header: with_terms(header, sampling_rate=0.5),
    lambda header: with_terms(header, norm=2.0),
    lambda header: with_terms(header, steps=1),
    lambda header: dataclasses.replace(header, model=bytes(32)),
    lambda header: dataclasses.replace(
        header, blocks=tuple(dataclasses.replace(one, variance=1) for one in header.blocks)),
    lambda header: dataclasses.replace(
        header, blocks=tuple(dataclasses.replace(one, step=one.step / 2) for one in header.blocks)),
    lambda header: dataclasses.replace(header, blocks=header.blocks[:1] * 2),
])  # fmt: skip
def test_a_round_on_other_terms_than_the_plans_is_refused(site: Site, alter) -> None:
    agreed = plan(site.made)
    site.propose(agreed)
    known = Training.start(agreed).state()
    cohort = [bytes.fromhex(one.identity) for one in agreed.members]
    header = terms.header(agreed, 0, known.encode(), 1, cohort)
    assert site.open(agreed, header=alter(header)) == "wrong-terms"
    assert site.open(agreed, header=header) == AdvertiseKeys.__name__


def test_a_round_with_another_state_than_its_headers_is_refused(site: Site) -> None:
    agreed = plan(site.made)
    site.propose(agreed)
    known = Training.start(agreed).state()
    cohort = [bytes.fromhex(one.identity) for one in agreed.members]
    other = State(0, known.centre, known.weights + 1)
    header = terms.header(agreed, 0, known.encode(), 1, cohort)
    assert site.open(agreed, header=header, state=other) == "wrong-terms"
    broken = State(0, known.centre, known.weights * np.float32(np.nan))
    assert site.open(agreed, state=broken) == "malformed-state"


def test_a_round_with_a_stranger_is_refused(site: Site) -> None:
    """In the roster, but not in the plan."""
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    site.agent = site.with_rules(site.rules.model_copy(update={"roster": (*site.rules.roster, stranger.hex())}))
    agreed = plan(site.made)
    site.propose(agreed)
    known = Training.start(agreed).state()
    cohort = [*(bytes.fromhex(one.identity) for one in agreed.members), stranger]
    header = terms.header(agreed, 0, known.encode(), 1, cohort)
    assert site.open(agreed, header=header) == "unapproved-peer"


def test_a_number_is_good_for_one_round(site: Site) -> None:
    agreed = plan(site.made)
    site.propose(agreed)
    assert site.open(agreed, number=3) == AdvertiseKeys.__name__
    assert [site.open(agreed, number=number) for number in (3, 2, 1)] == ["round-reused"] * 3
    site.made.start(NAME)
    site.agent = site.made.hospitals[NAME].agent
    assert site.open(agreed, number=3) == "round-reused"
    assert site.open(agreed, number=4) == AdvertiseKeys.__name__


def test_rules_that_were_tightened_hold_from_the_next_round_on(site: Site) -> None:
    agreed = plan(site.made)
    site.propose(agreed)
    site.agent = site.with_rules(site.rules.model_copy(update={"maximal_epsilon": 1.0}))
    assert site.open(agreed) == "epsilon-too-large"


def test_a_run_that_is_over_stays_over(site: Site) -> None:
    agreed = plan(site.made)
    site.propose(agreed)
    over = Envelope(Kind.END, bytes.fromhex(agreed.run))
    assert [site.ask(over), site.ask(over)] == ["accepted", "accepted"]
    assert reserved(site.made, NAME) == {}  # never begun: all comes back
    assert site.open(agreed) == "run-over"
    assert site.propose(agreed) == "run-reused"


def test_consent_is_asked_at_every_contribution(memory: Path) -> None:
    with federation(memory) as made:
        agreed = plan(made, rounds=3)
        made.coordinator.open(agreed)
        for _ in range(3):
            made.coordinator.run_once()
        rows = made._sites[NAME]
        kept = rows.patients < 5
        made._sites[NAME] = Examples(rows.features[kept], rows.labels[kept], rows.patients[kept])
        seen = []
        agent = made.hospitals[NAME].agent
        before = agent._rows
        agent._rows = lambda wanted: seen.append(before(wanted).count) or before(wanted)
        assert finish(made) == "finished"
        assert set(seen) == {5}


def test_whoever_has_nobody_left_leaves_the_round_and_says_no_more(memory: Path) -> None:
    with federation(memory, 4) as made:
        agreed = plan(made, rounds=2)
        made.coordinator.open(agreed)
        while not made.records.newest().training.done:
            made.coordinator.run_once()
        empty = examples(20, 0)
        made._sites[NAME] = Examples(empty.features[:0], empty.labels[:0], empty.patients[:0])
        assert finish(made) == "finished"
        survivors = [count for _, outcome, count in made.records.events(agreed) if outcome == "summed"]
        assert survivors == [4, 3, 3]


def test_what_was_paid_for_is_all_that_is_given(memory: Path) -> None:
    """A coordinator that lets every round fail gets as many contributions as were reserved, and no more."""
    with federation(memory) as made:
        agreed = plan(made, rounds=2, spare=1)
        made.coordinator.open(agreed)
        courier = made.coordinator._courier
        kinds: list[str] = []

        def lost(name: str, content: bytes) -> bool:  # the consistency check never comes about
            if not wire.is_envelope(content):
                kinds.append(open_frame(content).kind.__name__)
            return not wire.is_envelope(content) and open_frame(content).kind.__name__ == "SurvivorList"

        courier.lost = lost
        assert finish(made) == "contributions-used"
        for name in made.hospitals:
            assert reserved(made, name) == {"mean feature": (Entry.SPENT, 2)}
        assert kinds.count("CiphertextList") == 3 * 2  # three sites, two paid contributions


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(junk=st.binary(max_size=200), cut=st.integers(0, 400), flip=st.integers(0, 10_000))
def test_an_agent_answers_nothing_to_what_its_coordinator_did_not_sign(
    site: Site, junk: bytes, cut: int, flip: int
) -> None:
    agreed = plan(site.made, rounds=1, spare=0)
    content = Envelope(Kind.PLAN, bytes.fromhex(agreed.run), agreed.content).sealed(site.key)
    altered = bytearray(content)
    altered[flip % len(content)] ^= 1 + flip % 255
    for frame_ in (junk, bytes([wire.MARK]) + junk, content[:cut], bytes(altered)):
        assert site.agent.handle(frame_) == b""
    assert site.ask(Envelope(Kind.PLAN, bytes(16), b"{}"), Ed25519PrivateKey.generate()) == "silent"


def test_a_fault_of_the_site_says_nothing_about_itself(site: Site) -> None:
    agreed = plan(site.made)
    site.propose(agreed)

    def broken(_: Plan) -> Examples:
        raise ValueError("patient 4711 is odd")

    site.agent._rows = broken
    assert site.propose(plan(site.made)) == "silent"
    with federation(site.made._folder / "other") as made:
        other = plan(made)
        made.coordinator.open(other)
        made.coordinator.run_once()
        made.hospitals[NAME].agent._rows = broken
        answers: list[bytes] = []
        handle = made.hospitals[NAME].agent.handle
        made.coordinator._courier.sites = {
            **made.coordinator._courier.sites,
            NAME: lambda content: answers.append(handle(content)) or answers[-1],
        }
        with pytest.raises(AssertionError):
            finish(made, attempts=3)
        assert open_frame(answers[2]).kind is Abort
        assert not any(b"4711" in one for one in answers)


def test_sites_are_of_different_sizes() -> None:
    assert len({one.count for one in sites().values()}) == 3
    assert next(iter(sites().values())).features.shape[2] == CHANNELS
