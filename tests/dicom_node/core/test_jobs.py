"""Every transition of a job, allowed and forbidden, on both databases."""

from __future__ import annotations

import subprocess
import threading

import pytest
import sqlalchemy as sa

from dicom_node.core import jobs
from dicom_node.core.database import Database, job
from dicom_node.core.errors import Refused, Unavailable

CLOSERS = {
    "done": lambda connection, held: jobs.finish(connection, held, {"answer": "absent"}, 20.0),
    "refused": lambda connection, held: jobs.refuse(connection, held, Refused("policy"), 20.0),
    "failed": lambda connection, held: jobs.fail(connection, held, Unavailable("away"), 20.0),
    "waiting": lambda connection, held: jobs.retry(connection, held, Unavailable("away"), 30.0),
}


def add(database: Database, key: str = "k", now: float = 10.0) -> bool:
    with database.write() as connection:
        return jobs.add(connection, "classify", key, {"n": 1}, now)


def take(database: Database, owner: str = "a", now: float = 10.0) -> jobs.Job | None:
    return jobs.lease(database, ("classify",), owner, 60.0, now)


def state(database: Database) -> str:
    with database.read() as connection:
        return connection.execute(sa.select(job.c.state)).scalar_one()


def test_the_same_key_adds_work_once(database: Database) -> None:
    assert [add(database), add(database)] == [True, False]


def test_a_job_is_leased_once_and_not_before_its_time(database: Database) -> None:
    add(database, now=10.0)
    assert take(database, now=9.0) is None
    held = take(database)
    assert held is not None
    assert (held.payload, held.attempts, held.owner) == ({"n": 1}, 1, "a")
    assert take(database, "b", now=69.0) is None


def test_other_kinds_of_work_are_left_alone(database: Database) -> None:
    add(database)
    assert jobs.lease(database, ("deliver",), "a", 60.0, 10.0) is None


def test_an_expired_lease_passes_to_another_worker_and_a_heartbeat_keeps_it(database: Database) -> None:
    add(database)
    first = take(database)
    assert first is not None
    jobs.heartbeat(database, first, 60.0, 60.0)
    assert take(database, "b", now=71.0) is None
    second = take(database, "b", now=121.0)
    assert second is not None
    assert second.attempts == 2
    with pytest.raises(jobs.LeaseLost):
        jobs.heartbeat(database, first, 60.0, 121.0)


@pytest.mark.parametrize("end", CLOSERS)
def test_a_leased_job_ends_in_each_state_once(database: Database, end: str) -> None:
    add(database)
    held = take(database)
    assert held is not None
    with database.write() as connection:
        CLOSERS[end](connection, held)
    assert state(database) == end
    for again in CLOSERS.values():
        with pytest.raises(jobs.LeaseLost), database.write() as connection:
            again(connection, held)
    assert state(database) == end


@pytest.mark.parametrize("end", CLOSERS)
def test_a_worker_that_lost_its_lease_writes_nothing(database: Database, end: str) -> None:
    add(database)
    lost = take(database)
    held = take(database, now=100.0)  # the same owner took it again after expiry: still another lease
    assert lost is not None
    assert held is not None
    with pytest.raises(jobs.LeaseLost), database.write() as connection:
        jobs.add(connection, "deliver", "follow-up", {}, 100.0)
        CLOSERS[end](connection, lost)
    with database.read() as connection:
        assert connection.execute(sa.select(job.c.kind, job.c.state)).all() == [("classify", "leased")]


@pytest.mark.parametrize("end", ["done", "refused", "failed"])
def test_a_closed_job_is_never_leased_again_and_only_a_failed_one_can_be_requeued(database: Database, end: str) -> None:
    add(database)
    held = take(database)
    assert held is not None
    with database.write() as connection:
        CLOSERS[end](connection, held)
    assert take(database, now=1e9) is None
    with database.write() as connection:
        assert jobs.requeue(connection, held.id, 1e9) is (end == "failed")
    assert (take(database, now=1e9) is not None) is (end == "failed")


def test_a_retried_job_waits_for_its_time(database: Database) -> None:
    add(database)
    held = take(database)
    assert held is not None
    with database.write() as connection:
        CLOSERS["waiting"](connection, held)
    assert take(database, now=29.0) is None
    assert take(database, now=30.0) is not None


def test_many_workers_take_every_job_exactly_once(database: Database) -> None:
    for number in range(40):
        add(database, f"k{number}")
    taken: list[int] = []

    def work(owner: str) -> None:
        while (held := take(database, owner)) is not None:
            taken.append(held.id)
            with database.write() as connection:
                CLOSERS["done"](connection, held)

    def retrying(owner: str) -> None:
        for _ in range(3):  # PostgreSQL may skip a row that another worker is just taking
            work(owner)

    threads = [threading.Thread(target=retrying, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40
    assert len(set(taken)) == 40


def test_a_dead_process_of_this_host_gives_its_job_back_at_once_and_a_living_one_keeps_it(database: Database) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    add(database)
    mine = take(database, jobs.owner_name("worker"))
    assert mine is not None
    assert jobs.release_dead(database, 11.0) == 0
    assert take(database, "other", now=11.0) is None
    with database.write() as connection:
        host = mine.owner.partition("/")[0]
        connection.execute(job.update().values(lease_owner=f"{host}/{gone.pid}/worker"))
    assert jobs.release_dead(database, 11.0) == 1
    assert take(database, "other", now=11.0) is not None


def test_a_job_held_on_another_host_is_left_alone(database: Database) -> None:
    add(database)
    assert take(database, "another-host/1/worker") is not None
    assert jobs.release_dead(database, 11.0) == 0


def test_the_pause_doubles_up_to_its_longest() -> None:
    assert [jobs.backoff(n, 5.0, 60.0) for n in (1, 2, 3, 4, 5, 500)] == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
