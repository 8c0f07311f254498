"""An attacker who owns the coordinator and the courier: its key is the right one, and it asks for what it likes.

What an agent refuses of a single plan or header stands in `tests.fl_agent.agent.test_agent`; here are whole attacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_node.core import audit
from dicom_node.core.database import audit_event
from fl_agent.learning import envelope as wire
from fl_agent.learning import terms
from fl_agent.learning.envelope import Envelope, Kind
from fl_agent.learning.plan import Plan
from fl_agent.learning.propose import assumed_honest
from fl_agent.learning.server import Training
from fl_agent.learning.site import contribution
from fl_agent.learning.state import LARGEST, State
from fl_agent.randomness import SecureSource
from fl_agent.secagg import client as client_module
from fl_agent.secagg.frames import frame, open_frame
from fl_agent.secagg.header import least_threshold
from fl_agent.secagg.masks import Words, add_masks
from fl_agent.secagg.messages import Abort, AdvertiseKeys, KeyEntry, KeyList
from fl_agent.simulate.federation import Federation
from tests.fl_agent.agent.test_agent import NAME, Site
from tests.fl_agent.federations import federation, finish, plan, reserved


@pytest.fixture
def site(memory: Path) -> Iterator[Site]:
    with federation(memory) as made:
        yield Site(made)


def refusals(made: Federation) -> list[str]:
    """Codes of the refused plans in a site's audit trail, whose chain holds."""
    with made.hospitals[NAME].database.read() as connection:
        audit.verify(connection)
        rows = list(connection.execute(audit_event.select().order_by(audit_event.c.seq)))
    return [row.detail["code"] for row in rows if row.event_type == "training-refused"]


@pytest.mark.parametrize("mode", ["site", "distributed"])
@pytest.mark.parametrize("change", [
    {"noise_multiplier": 0.3},  # a huge epsilon
    {"noise_multiplier": 1e-6},  # as good as no noise
    {"attempts": 1_000_000},  # the same question until the noise is averaged out
])  # fmt: skip
def test_a_plan_that_would_show_the_patients_is_refused_recorded_and_free(
    site: Site, mode: str, change: dict[str, Any]
) -> None:
    agreed = plan(site.made, mode)
    hostile = agreed.model_copy(update={"descent": agreed.descent.model_copy(update=change)})
    assert site.propose(hostile) == "epsilon-too-large"
    assert refusals(site.made) == ["epsilon-too-large"]
    assert reserved(site.made, NAME) == {}
    assert site.open(hostile) == "unknown-run"


@pytest.mark.parametrize("noise", [0.0, 5e-324, 1e-9, float("nan")])
def test_a_plan_without_noise_cannot_be_written(site: Site, noise: float) -> None:
    agreed = plan(site.made)
    content = agreed.content.replace(
        b'"noise_multiplier":%a' % agreed.descent.noise_multiplier, b'"noise_multiplier":%a' % noise
    )
    assert content != agreed.content
    assert site.ask(Envelope(Kind.PLAN, bytes.fromhex(agreed.run), content)) == "malformed-plan"
    assert reserved(site.made, NAME) == {}


@pytest.mark.parametrize("delta", [0.5, 1 - 1e-9])
def test_a_delta_that_would_allow_to_publish_the_patients_makes_nothing_cheaper(site: Site, delta: float) -> None:
    agreed = plan(site.made)
    descent = agreed.descent.model_copy(update={"noise_multiplier": 0.3})
    assert site.propose(agreed.model_copy(update={"delta": delta, "descent": descent})) == "epsilon-too-large"


def test_a_plan_that_counts_on_more_honest_hospitals_than_it_may_is_refused(memory: Path) -> None:
    with federation(memory, 7) as made:
        site, agreed = Site(made), plan(made)
        assert agreed.honest == assumed_honest(7) == 3
        assert site.propose(agreed.model_copy(update={"honest": 4})) == "too-many-honest"
        assert refusals(made) == ["too-many-honest"]
        assert site.propose(agreed) == "accepted"


def test_a_coordinator_cannot_ask_few_of_whom_its_friends_are_a_third(memory: Path) -> None:
    """Two of seven work for it, as the plan allows; among the four that it asks they would be half."""
    with federation(memory, 7) as made:
        site, agreed = Site(made), plan(made)
        site.propose(agreed)
        own = site.identity
        known = Training.start(agreed).state()
        others = [one for one in (bytes.fromhex(one.identity) for one in agreed.members) if one != own]
        everyone = terms.header(agreed, 0, known.encode(), 1, [own, *others])
        few = everyone.__class__(**{
            **{name: getattr(everyone, name) for name in ("run", "round", "model", "bits", "blocks", "privacy")},
            "cohort": tuple(sorted([own, *others[:3]])), "threshold": 3,
        })  # fmt: skip
        assert site.open(agreed, header=few) == "cohort-too-small"
        assert site.open(agreed, header=everyone) == AdvertiseKeys.__name__


def test_whoever_is_asked_two_sums_cannot_be_signed_and_enough_noise_stays() -> None:
    """With less than a third of the members colluding; a threshold of those who are asked would not do."""
    for members in range(3, 101):
        colluding, threshold = (members - 1) // 3, least_threshold(members)
        broken = 0
        for asked in range(3, members + 1):
            friends, least = min(colluding, asked - 1), least_threshold(asked)
            # Honest hospitals sign one set of survivors, friends of the coordinator two; each set needs a threshold.
            broken += asked + friends >= 2 * least or least - friends < assumed_honest(members)
            if asked >= threshold:
                assert asked + friends < 2 * threshold
                assert threshold - friends >= assumed_honest(members)
        assert broken > 0 or members in {3, 4}


def test_sites_that_are_told_different_terms_do_not_sum(memory: Path) -> None:
    """Each header is legal for itself: another state, at which the attacker would compare two sites."""
    with federation(memory) as made:
        agreed = plan(made)
        everyone = {name: Site(made) for name in made.hospitals}
        zeros = Training.start(agreed).state()
        ones = State(0, zeros.centre, zeros.weights + 1)
        cohort = [bytes.fromhex(one.identity) for one in agreed.members]
        users = {one.name: number for number, one in enumerate(agreed.members, start=1)}
        keys, headers = {}, {}
        for name, one in everyone.items():
            one.agent, one.identity = made.hospitals[name].agent, cohort[users[name] - 1]
            assert one.propose(agreed) == "accepted"
            known = ones if name == NAME else zeros
            headers[name] = header = terms.header(agreed, 0, known.encode(), 1, cohort)
            opening = frame(header.message(), 0, header.round_id, one.key)
            answer = one.agent.handle(wire.opening(header.run, known.encode(), opening).sealed(one.key))
            said = open_frame(answer).message()
            assert isinstance(said, AdvertiseKeys)
            keys[users[name]] = KeyEntry(users[name], said.c_pk, said.s_pk, said.signature)
        together = KeyList(tuple(keys[user] for user in sorted(keys)))
        for name, one in everyone.items():
            answer = one.agent.handle(frame(together, 0, headers[name].round_id, one.key))
            assert open_frame(answer).kind is Abort
        # Nobody touched its patients.
        assert {step for name in made.hospitals for _, step in reserved(made, name).values()} == {2, 6}
        assert all(
            entry.state.name == "RESERVED" for name in made.hospitals for entry in made.hospitals[name].ledger.entries()
        )


def overheard(made: Federation, agreed: Plan) -> tuple[list[bytes], list[bytes]]:
    """Run to the end and return what was brought to one site, and what all sites said."""
    brought: list[bytes] = []
    said: list[bytes] = []
    courier = made.coordinator._courier

    def tapped(name: str, handler: Any) -> Any:
        def handle(content: bytes) -> bytes:
            if name == NAME:
                brought.append(content)
            said.append(handler(content))
            return said[-1]

        return handle

    courier.sites = {name: tapped(name, handler) for name, handler in courier.sites.items()}
    made.coordinator.open(agreed)
    assert finish(made) == "finished"
    return brought, said


def test_frames_of_a_run_do_nothing_when_they_come_again_in_any_order(memory: Path) -> None:
    with federation(memory / "one") as made:
        brought, _ = overheard(made, plan(made))
        before = made.hospitals[NAME].ledger.entries()
        agent = made.hospitals[NAME].agent
        random = np.random.default_rng(0)
        kinds = set()
        for order in (range(len(brought)), range(len(brought))[::-1], random.permutation(len(brought))):
            for number in order:
                answer = agent.handle(brought[number])
                if answer:  # a refusal, or a word that the run is over, and nothing of secure aggregation
                    read = wire.opened(answer, made._keys[NAME].public_key().public_bytes_raw())
                    kinds.add((read.kind, wire.read_answer(read, brought[number])))
        assert kinds == {(Kind.REFUSED, "run-reused"), (Kind.REFUSED, "run-over"), (Kind.ACCEPTED, "")}
        ends = [one for one in brought if wire.is_envelope(one) and one[1] == Kind.END]
        assert ends
        assert made.hospitals[NAME].ledger.entries() == before
        for content in brought:
            for cut in (1, len(content) // 2, len(content) - 1):
                assert agent.handle(content[:cut]) == b""
    with federation(memory / "two") as other:
        for content in brought:  # another consortium, another coordinator
            assert other.hospitals[NAME].agent.handle(content) == b""


@pytest.mark.parametrize("masks", [True, False], ids=["masked", "no masks"])
def test_no_single_contribution_is_in_anything_that_leaves_a_site_or_that_the_coordinator_keeps(
    memory: Path, monkeypatch: pytest.MonkeyPatch, masks: bool
) -> None:
    """Searched for as bytes, in all frames and files; without masks the search finds every one."""
    single: list[bytes] = []

    def noted(words: Words, plus: list[bytes], minus: list[bytes]) -> None:
        single.append(words.tobytes())
        if masks:
            add_masks(words, plus, minus)

    monkeypatch.setattr(client_module, "add_masks", noted)
    with federation(memory) as made:
        _, said = overheard(made, plan(made, rounds=2))  # without masks, too: the sums are then nonsense
    kept = [one.read_bytes() for one in memory.rglob("*") if one.is_file() and "site-" not in str(one)]
    assert len(kept) >= 2
    assert len(single) == 3 * 3  # three hospitals, three sums
    found = [any(secret[:16] in held for held in (*said, *kept)) for secret in single]
    assert found == [not masks] * len(single)


@pytest.mark.parametrize("size", [3e38, 1e30, 2e6])
def test_weights_at_which_only_some_patients_scores_overflow_are_refused(site: Site, size: float) -> None:
    """A site that leaves a round over one patient would answer, without noise, whether that patient is there."""
    agreed = plan(site.made)
    site.propose(agreed)
    known = Training.start(agreed).state()
    weights = np.zeros(agreed.dimension, np.float32)
    weights[2] = size
    assert site.open(agreed, state=State(1, known.centre, weights)) == "malformed-state"
    assert site.open(agreed, state=State(1, np.full_like(known.centre, size), known.weights)) == "malformed-state"


@pytest.mark.parametrize("mode", ["site", "distributed"])
def test_at_the_largest_weights_that_are_allowed_everybody_gives_numbers(site: Site, mode: str) -> None:
    agreed = plan(site.made, mode)
    own = agreed.member(site.identity)
    random = np.random.default_rng(3)
    with np.errstate(all="raise", under="ignore"):
        for _ in range(5):
            weights = LARGEST * random.choice([-1, 1], agreed.dimension)
            centre = LARGEST * random.choice([-1, 1], agreed.channels)
            known = State(1, centre.astype(np.float32), weights.astype(np.float32))
            for block in contribution(agreed, own, known, site.rows, SecureSource()):
                assert np.isfinite(block).all()
