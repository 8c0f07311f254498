"""A coordinator that loses sites, frames and itself, and still brings the run to its end."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import ConfigError, Unavailable
from dicom_node.core.settings import Population
from fl_agent.coordinator.candidate import Publisher
from fl_agent.coordinator.records import Records
from fl_agent.learning import server, site
from fl_agent.ledger.entries import State
from fl_agent.runreport import record
from fl_agent.secagg.server import Server
from secure_infer.models import ModelStore, public_hex
from secure_infer.network import Trunk
from tests.fl_agent.federations import STAGES, Killed, federation, finish, kill_at, kind, plan, reserved
from tests.fl_agent.learning.hospitals import identity

PLACES = ["coordinator-opened", "coordinator-numbered", "coordinator-summed", "coordinator-recorded",
          "coordinator-stored", "coordinator-published"]  # fmt: skip


def test_a_run_ends_with_what_the_sites_sum_to(memory: Path) -> None:
    with federation(memory) as made:
        agreed = plan(made, rounds=3)
        made.coordinator.open(agreed)
        assert finish(made) == "finished"
        found = record.read(made.coordinator.folder(agreed))
        assert [one.round for one in found.rounds] == [1, 2, 3, 4]
        assert found.end is not None
        assert all(one.survivors == 3 for one in found.rounds)
        spent = [one.distributed_epsilon for one in found.rounds]
        assert spent == sorted(spent)
        assert spent[-1] < 3.0 < found.rounds[-1].epsilon["site-0"]
        assert found.rounds[0].loss is None
        assert all(one.loss is not None and "auc" in one.metrics for one in found.rounds[1:])
        for name in made.hospitals:
            assert reserved(made, name) == {"mean feature": (State.SPENT, 1), "head": (State.SPENT, 3)}
        assert not made.coordinator.run_once()


@pytest.mark.parametrize("stage", STAGES)
def test_one_of_four_may_fall_silent_at_any_stage_and_is_back_in_the_next_round(memory: Path, stage: str) -> None:
    silenced: list[str] = []

    def lost(name: str, frame: bytes) -> bool:
        if name == "site-2" and kind(frame) == stage and not silenced:
            silenced.append(name)
            return True
        return False

    with federation(memory, 4, lost) as made:
        agreed = plan(made, rounds=3)
        made.coordinator.open(agreed)
        assert finish(made) == "finished"
        survivors = [count for _, _, count in made.records.events(agreed)]
        # A masked input that came is in the sum, whoever falls silent afterwards.
        assert survivors == [4 if stage in STAGES[3:] else 3, 4, 4, 4]
        assert len(made.waited) == 1


@pytest.mark.parametrize("stage", ["PLAN", *STAGES])
def test_a_courier_that_is_killed_at_any_stage_costs_the_round_and_what_was_given_to_it(
    memory: Path, stage: str
) -> None:
    fell: list[str] = []

    def down(name: str, frame: bytes) -> bool:
        if kind(frame) == stage and not fell:
            fell.append(name)
            raise Unavailable("the courier is down", code="courier")
        return False

    with federation(memory, 3, down) as made:
        agreed = plan(made, rounds=3)
        made.coordinator.open(agreed)
        assert finish(made) == "finished"
        assert len(fell) == 1
        assert [count for _, _, count in made.records.events(agreed)][-4:] == [3, 3, 3, 3]
        # From the third stage's end on the first sum had been paid for; it is paid for again.
        given = 2 if stage in STAGES[3:] else 1
        for name in made.hospitals:
            assert reserved(made, name) == {"mean feature": (State.SPENT, given), "head": (State.SPENT, 3)}


def test_a_site_that_stays_silent_costs_a_time_out_once_and_then_probes(memory: Path) -> None:
    with federation(memory, 4, lambda name, frame: name == "site-3" and kind(frame) in STAGES) as made:
        made.coordinator.open(plan(made, rounds=12))
        assert finish(made) == "finished"
        waits = [seconds for _, seconds in made.waited if seconds != 2]
        probes = len(made.waited) - len(waits)
        assert waits == [30]
        assert 2 <= probes <= 4  # after 1, 2, 4, 8 rounds


def test_a_site_that_is_away_costs_nothing_and_joins_later(memory: Path) -> None:
    with federation(memory, 4) as made:
        agreed = plan(made, rounds=4)
        courier = made.coordinator._courier
        courier.away = {"site-1"}
        made.coordinator._clock = lambda: 1e9
        made.coordinator.open(agreed)
        made.coordinator.run_once()
        with pytest.raises(Unavailable) as error:
            made.coordinator.run_once()
        assert error.value.code == "joining"
        made.coordinator._clock = lambda: 1e9 + 6
        for _ in range(2):
            made.coordinator.run_once()
        courier.away = set()
        assert finish(made) == "finished"
        assert [count for _, _, count in made.records.events(agreed)] == [3, 3, 4, 4, 4]
        assert made.waited == []


def test_a_site_that_keeps_dying_while_it_joins_is_asked_until_it_answers(memory: Path) -> None:
    asked: list[str] = []

    def lost(name: str, frame: bytes) -> bool:
        if name == "site-1" and kind(frame) == "PLAN":
            asked.append(name)
            return len(asked) < 5
        return False

    with federation(memory, 3, lost) as made:
        made.coordinator.open(plan(made, rounds=2))
        assert finish(made) == "finished"
        assert len(asked) == 5


def test_a_round_below_the_threshold_is_repeated_under_a_new_number(memory: Path) -> None:
    broken = Counter[str]()

    def lost(name: str, frame: bytes) -> bool:
        broken[kind(frame)] += 1
        return kind(frame) == "SurvivorList" and broken["SurvivorList"] in {4, 5}

    with federation(memory, 3, lost) as made:
        agreed = plan(made, rounds=2)
        made.coordinator.open(agreed)
        assert finish(made) == "finished"
        assert made.records.events(agreed) == [
            (1, "summed", 3), (2, "below-threshold", 0), (3, "summed", 3), (4, "summed", 3),
        ]  # fmt: skip
        # What was contributed to the lost round counts.
        assert reserved(made, "site-0")["head"] == (State.SPENT, 3)


def test_a_run_that_too_many_refuse_ends_with_their_reason(memory: Path) -> None:
    with federation(memory) as made:
        for name in ("site-0", "site-1"):
            agent = made.hospitals[name].agent
            rules = agent._rules.federation.model_copy(update={"minimum_cohort": 4})
            agent._rules = agent._rules.__class__(rules, agent._rules.privacy)
        made.coordinator.open(plan(made))
        assert finish(made) == "cohort-too-small"
        ended = made.records.newest()
        assert ended is not None
        assert ended.refused == {"site-0": "cohort-too-small", "site-1": "cohort-too-small"}
        assert reserved(made, "site-2") == {}  # told of the end: all comes back


def test_a_site_that_lost_its_records_is_asked_anew(memory: Path) -> None:
    with federation(memory, 4) as made:
        agreed = plan(made, rounds=3)
        made.coordinator.open(agreed)
        while made.records.newest().training.done < 2:
            made.coordinator.run_once()
        for file in (memory / "site-2").glob("site.sqlite3*"):
            file.unlink()
        made.start("site-2")
        assert finish(made) == "finished"
        assert [count for _, _, count in made.records.events(agreed)] == [4, 4, 3, 4]


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_coordinator_goes_on_under_a_fresh_number(
    memory: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    numbers: list[tuple[bytes, int]] = []
    start = Server.start

    def noted(machine: Server) -> object:
        numbers.append((machine.header.run, machine.header.round))
        return start(machine)

    monkeypatch.setattr(Server, "start", noted)
    with federation(memory) as made:
        agreed = plan(made, rounds=3)
        killed = kill_at(monkeypatch, place, (0, 2))
        deaths = 0
        for _ in range(4):
            try:
                if not made.records.has(agreed.version):
                    made.coordinator.open(agreed)
                if finish(made) == "finished":
                    break
            except Killed:
                deaths += 1
                made.start_coordinator()
        assert deaths == len(killed) == (1 if place in {"coordinator-opened", "coordinator-published"} else 2)
        assert len(set(numbers)) == len(numbers)
        current = made.records.newest()
        assert current is not None
        assert current.training.done == 4
        assert record.read(made.coordinator.folder(agreed)).end is not None
        repeated = place in {"coordinator-numbered", "coordinator-summed", "coordinator-recorded"}
        assert current.number == 4 + (2 if repeated else 0)
        for name in made.hospitals:
            assert all(state is State.SPENT for state, _ in reserved(made, name).values())


def test_a_version_is_trained_once(memory: Path) -> None:
    with federation(memory) as made:
        made.coordinator.open(plan(made))
        with pytest.raises(ConfigError) as error:
            made.coordinator.open(plan(made))
        assert error.value.code == "run-exists"


def test_records_of_another_version_are_not_touched(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.sqlite3")
    with records._database.write() as connection:
        connection.exec_driver_sql("UPDATE schema SET version = 99")
    records.close()
    with pytest.raises(ConfigError) as error:
        Records(tmp_path / "records.sqlite3")
    assert error.value.code == "schema"


def test_the_candidate_is_signed_and_tells_what_it_cost(memory: Path) -> None:
    key = identity("publisher")
    store = ModelStore(memory / "models", [public_hex(key)])
    publisher = Publisher(store, key, Population(min_age_years=1, max_age_years=5))
    trunk = Trunk(("head",))
    with federation(memory) as made:
        small = plan(made, rounds=2)
        # The tiny features are not the trunk's: the card is about shapes, and shapes must be the trunk's.
        agreed = small.model_copy(update={"channels": trunk.channels})
        training = server.Training.start(agreed)
        for _ in range(agreed.sums):
            training = server.replace(training, done=training.done + 1, weights=training.weights + 0.01, averaged=1)
        card = publisher.publish(agreed, training)
        assert publisher.publish(agreed, training) == card  # as after a kill
        verified = store.verify("1.0")
        assert verified.privacy.epsilon <= 3.001
        assert verified.privacy.epsilon_alone is not None
        assert verified.privacy.epsilon_alone > verified.privacy.epsilon
        assert agreed.digest.hex() in verified.context[0]
        assert verified.operating_point.undetermined_share is None
        assert not verified.figures
        other = server.replace(training, average=training.average + 1)
        with pytest.raises(ConfigError) as error:
            publisher.publish(agreed, other)
        assert error.value.code == "published"


def test_the_coordinator_holds_no_update_of_one_hospital(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One site's vector is a row of odd words; they are looked for in all that the coordinator can reach and writes."""
    plain: dict[str, np.ndarray] = {}
    compute = site.contribution

    def marked(agreed, own, state, *rest):
        found = compute(agreed, own, state, *rest)
        if own.name == "site-1":
            for block in found:
                block[:] = np.arange(len(block)) * 7919 + 104729 * state.done  # a canary
            plain[str(state.done)] = np.concatenate(found)
        return found

    monkeypatch.setattr(site, "contribution", marked)
    seen: list[bytes] = []
    with federation(memory) as made:
        handle = made._handle
        made._handle = lambda name, frame: seen.append(handle(name, frame)) or seen[-1]
        made.start_coordinator()
        made.coordinator.open(plan(made, rounds=2))
        assert finish(made) == "finished"
        assert len(plain) == 3
        patterns = [
            values.astype(form).tobytes()[:24] for values in plain.values() for form in ("<i4", "<i8", "<f4", "<f8")
        ]
        files = [path.read_bytes() for path in memory.glob("coordinator*")]
        files += [path.read_bytes() for path in (memory / "runs").rglob("*") if path.is_file()]
        gc.collect()
        arrays = [one.tobytes() for one in gc.get_objects() if type(one) is np.ndarray and one.dtype != object]
        mine = {id(one) for one in plain.values()}
        assert mine
        for pattern in patterns:
            assert not any(pattern in one for one in (*seen, *files))
        # What arrays there are: the canary itself, kept by this test, and nothing else that holds it.
        held = sum(any(pattern in one for pattern in patterns) for one in arrays)
        assert held <= len(plain)
