"""The dealer's pool and its audits between real processes: nothing is offered twice, and a forger is stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import IntegrityError, ProtocolError, Unavailable
from tests.system.forked import ForkedService
from tests.system.roles import LARGE, Roles, ask, bundle_for, features, plain, wait_until


@pytest.fixture
def roles(tmp_path: Path) -> Iterator[Roles]:
    made = Roles(tmp_path, service=ForkedService)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def waiting(roles: Roles) -> set[str]:
    return {path.stem for path in roles.folder.glob("dealer/pool/*/*.bundle")}


def wait_for_pool(roles: Roles, count: int = 2) -> set[str]:
    deadline = time.monotonic() + 60
    while len(waiting(roles)) < count:
        assert time.monotonic() < deadline, "the dealer dealt nothing ahead"
        time.sleep(0.02)
    return waiting(roles)


def dealt(roles: Roles) -> list[str]:
    """Every bundle that left the dealer for a hospital, in this process and in those before it."""
    return [line["bundle_id"] for line in roles.dealer.lines() if line["event"] == "bundle-dealt"]


def right(roles: Roles) -> bool:
    return bool(np.abs(ask(roles.engine()) - plain(roles)).max() < 1e-4)


def test_bundles_dealt_ahead_are_used_and_survive_a_kill(roles):
    assert right(roles)
    ahead = wait_for_pool(roles)
    roles.dealer.kill()
    seen = set(dealt(roles))
    roles.start_dealer()
    for _ in range(3):
        assert right(roles)
    wait_until(lambda: ahead <= {*dealt(roles), *waiting(roles)}, "a bundle dealt ahead is lost")
    found = dealt(roles)
    assert len(found) == len(set(found))
    assert ahead & set(found) - seen  # what was dealt before the kill answered a query after it


@pytest.mark.parametrize("place", ["dealer-taken", "dealer-dealt"])
def test_a_bundle_taken_when_the_dealer_dies_is_never_offered_again(roles, place):
    assert right(roles)
    ahead = wait_for_pool(roles)
    roles.start_dealer(failpoint=place)
    with pytest.raises(Unavailable):
        ask(roles.engine())
    (lost,) = ahead - waiting(roles)
    before = len(dealt(roles))
    roles.start_dealer()
    for _ in range(4):
        assert right(roles)
    assert lost not in dealt(roles)[before:]
    assert not list(roles.folder.glob(f"dealer/pool/*/{lost}*"))


def test_a_bundle_half_written_when_the_dealer_dies_is_burned(roles):
    roles.start_dealer(failpoint="dealer-half-written")
    with contextlib.suppress(Unavailable):  # the dealer may die while it still answers
        ask(roles.engine())  # registers the order; dealing ahead then kills the dealer
    deadline = time.monotonic() + 60
    while roles.dealer.alive:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert list(roles.folder.glob("dealer/pool/*/*.part"))
    roles.start_dealer()
    wait_for_pool(roles)
    assert not list(roles.folder.glob("dealer/pool/*/*.part"))
    assert right(roles)


def test_a_bundle_that_party_1_has_not_fetched_is_burned_by_a_restart(roles):
    opening = bundle_for(roles)
    roles.dealer.kill()
    roles.start_dealer()
    with roles.channel("party") as party:
        party.send(opening)
        with pytest.raises(ProtocolError) as caught:
            party.receive(LARGE)
    assert caught.value.code == "unknown-bundle"
    assert right(roles)


def test_connections_are_used_again_and_replaced_when_the_other_side_was_restarted(roles):
    engine = roles.engine()
    for _ in range(3):
        engine.infer(features())
    assert len(engine._dealer._idle) == len(engine._party._idle) == 1
    (_, first), (_, second) = engine._dealer._idle[0], engine._party._idle[0]
    engine.infer(features())
    assert engine._dealer._idle[0][1] is first
    assert engine._party._idle[0][1] is second
    roles.start_dealer()
    roles.start_party()
    assert np.abs(engine.infer(features()).logits - plain(roles)).max() < 1e-4
    assert engine._dealer._idle[0][1] is not first
    engine.close()


def test_audited_bundles_are_replaced_and_the_patient_gets_the_right_answer(roles):
    engine = roles.engine(audit_one_in=2)
    for _ in range(12):
        assert np.abs(engine.infer(features()).logits - plain(roles)).max() < 1e-4
    engine.close()
    audited = [line["bundle_id"] for line in roles.party.lines() if line["event"] == "bundle-audited"]
    answered = [line["bundle_id"] for line in roles.party.lines() if line["event"] == "query-answered"]
    assert audited  # 12 answers without one: once in 4096 runs
    assert not set(audited) & set(answered)


def test_a_forging_dealer_is_caught_and_not_used_again_until_somebody_has_looked(roles):
    roles.start_dealer(program="forger")
    engine = roles.engine(audit_one_in=2)
    with pytest.raises(IntegrityError) as caught:
        for _ in range(40):
            try:
                engine.infer(features())
            except IntegrityError as error:
                if error.code != "output-out-of-range":
                    raise
    assert caught.value.code == "bundle-forged"
    engine.close()
    roles.start_dealer()  # honest again; that alone is not enough
    with pytest.raises(IntegrityError) as caught:
        ask(roles.engine())
    assert caught.value.code == "dealer-distrusted"
    (roles.folder / "hospital" / "dealer-distrusted.json").unlink()
    with pytest.raises(IntegrityError) as caught:  # party 1 remembers, too
        ask(roles.engine())
    assert caught.value.code == "dealer-distrusted"
    assert any(line.get("event") == "dealer-distrusted" for line in roles.party.lines())
    (roles.folder / "party" / "dealer-distrusted.json").unlink()
    assert right(roles)
