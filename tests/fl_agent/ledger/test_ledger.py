"""Every state and event of a reservation, limits, names, and what happens to a ledger that somebody altered."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa

from dicom_node.core import audit
from dicom_node.core.database import Database, audit_event, privacy_ledger
from dicom_node.core.errors import ConfigError, IntegrityError, Refused
from dicom_node.core.training_settings import PrivacySettings
from fl_agent.ledger.accountant import loss, total
from fl_agent.ledger.entries import State
from fl_agent.ledger.ledger import Ledger
from secure_infer.card import Bound, Distributed
from tests.fl_agent.ledger.site import LIMITS, reserve, training

PATHS = {
    State.RESERVED: (),
    State.BEGUN: ("begin",),
    State.SPENT: ("begin", "spend"),
    State.RELEASED: ("release",),
}
ALLOWED = {
    (State.RESERVED, "begin"): State.BEGUN,
    (State.RESERVED, "release"): State.RELEASED,
    (State.BEGUN, "spend"): State.SPENT,
}


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database, LIMITS, clock=lambda: 1000.25)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, ["begin", "spend", "release"])))
def test_every_event_in_every_state_is_taken_or_refused(ledger: Ledger, state: State, event: str) -> None:
    token = reserve(ledger)
    for step in PATHS[state]:
        getattr(ledger, step)(token)
    if (state, event) in ALLOWED:
        getattr(ledger, event)(token)
    else:
        with pytest.raises(Refused) as raised:
            getattr(ledger, event)(token)
        assert raised.value.code == "reservation-state"
    (entry,) = ledger.entries()
    assert entry.state is ALLOWED.get((state, event), state)
    assert entry.counts == (entry.state is not State.RELEASED)
    assert (entry.terms, entry.at, entry.cut) == (training(), 1000.25, False)


@pytest.mark.parametrize("event", ["begin", "spend", "release"])
def test_an_unknown_token_is_refused(ledger: Ledger, event: str) -> None:
    with pytest.raises(Refused) as raised:
        getattr(ledger, event)("0" * 32)
    assert raised.value.code == "unknown-reservation"


def test_steps_that_never_began_are_given_back_and_no_more(ledger: Ledger) -> None:
    token = reserve(ledger, 100)
    ledger.begin(token)
    for impossible in (0, 101):
        with pytest.raises(ConfigError) as raised:
            ledger.spend(token, impossible)
        assert raised.value.code == "ledger-steps"
    ledger.spend(token, 40)
    (entry,) = ledger.entries()
    assert (entry.terms, entry.cut) == (training(40), True)


def test_the_limit_is_kept_and_the_refusal_says_what_is_left(database: Database) -> None:
    ledger = Ledger(database, LIMITS)
    with pytest.raises(Refused) as raised:
        while True:
            reserve(ledger)
    held = [loss(one.terms) for one in ledger.entries()]
    used = total(held).lifelong(LIMITS.delta)
    assert len(held) > 1
    assert used <= LIMITS.epsilon < total([*held, loss(training())]).lifelong(LIMITS.delta)
    assert raised.value.code == "privacy-budget"
    assert f"epsilon {LIMITS.epsilon - used:.3f} of 4 left" in str(raised.value)
    with database.read() as connection:
        refusals = sa.select(audit_event.c.outcome).where(audit_event.c.event_type == "privacy-refused")
        assert connection.execute(refusals).scalars().all() == [audit.Outcome.MINOR_FAILURE]
        audit.verify(connection)


def test_what_is_released_may_be_reserved_again(ledger: Ledger) -> None:
    whole = 500
    with pytest.raises(Refused):
        for _ in range(9):
            token = reserve(ledger, whole)
    ledger.release(token)
    reserve(ledger, whole)


def test_runs_models_and_searches_share_one_budget_and_another_patient_set_has_its_own(ledger: Ledger) -> None:
    with pytest.raises(Refused):
        for number in range(99):
            reserve(ledger, 200, run=f"run-{number}", model=f"model-{number}")
    reserve(ledger, 200, patient_set="other")


def test_the_limit_for_a_site_alone_counts_its_own_noise(database: Database) -> None:
    mechanism = Distributed(
        name="head", patients=500, sampling_rate=0.1, steps=100, variance=10**6, honest=3, dimension=40,
        sensitivity_squared=10**6,
    )  # fmt: skip
    shared, alone = (loss(mechanism, alone=one).lifelong(1e-5) for one in (False, True))
    for limit in (alone, alone * 0.999):
        limits = PrivacySettings(epsilon=shared, epsilon_alone=limit)
        ledger = Ledger(database, limits)
        if limit == alone:
            ledger.release(ledger.reserve(mechanism, run="r", model="m"))
        else:
            with pytest.raises(Refused, match="if every other hospital colludes"):
                ledger.reserve(mechanism, run="r", model="m")


def test_a_bound_that_eats_the_whole_delta_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Refused):
        ledger.reserve(Bound(name="x", patients=10, epsilon=0.1, delta=1e-5), run="r", model="m")


def test_a_reservation_for_an_unknown_number_of_patients_is_named(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="how many patients"):
        ledger.reserve(Bound(name="x", epsilon=0.1), run="r", model="m")


def test_a_delta_that_would_allow_to_publish_a_patient_is_named(ledger: Ledger) -> None:
    with pytest.raises(ConfigError) as raised:
        ledger.reserve(training(patients=100_000), run="r", model="m")
    assert raised.value.code == "delta"


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_impossible_names_are_refused(ledger: Ledger, name: str) -> None:
    for field in ("run", "model", "patient_set"):
        with pytest.raises(ConfigError) as raised:
            reserve(ledger, **{field: name})
        assert raised.value.code == "ledger-name"


def test_the_table_refuses_update_and_delete(ledger: Ledger, database: Database) -> None:
    reserve(ledger)
    for statement in (privacy_ledger.update().values(run="x"), privacy_ledger.delete()):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(statement)


@pytest.mark.parametrize("change", ["terms", "event", "first removed", "last removed", "all removed"])
def test_an_altered_ledger_stops_all_training(ledger: Ledger, database: Database, change: str) -> None:
    token = reserve(ledger)
    ledger.begin(token)
    with database.write() as connection:
        if database.is_sqlite:
            for verb in ("update", "delete"):
                connection.exec_driver_sql(f"DROP TRIGGER privacy_ledger_no_{verb}")
        else:
            connection.exec_driver_sql("DROP TRIGGER privacy_ledger_append_only ON privacy_ledger")
        table = privacy_ledger
        values = {"terms": training(1).model_dump(mode="json"), "event": "released"}
        row = table.c.seq == (1 if change in {"terms", "first removed"} else 2)
        if change in values:
            connection.execute(table.update().where(row).values({change: values[change]}))
        else:
            connection.execute(table.delete() if change == "all removed" else table.delete().where(row))
    for act in (lambda: reserve(ledger), lambda: ledger.spend(token), ledger.entries):
        with pytest.raises(IntegrityError, match="altered"):
            act()
