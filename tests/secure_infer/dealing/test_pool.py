"""Bundles dealt ahead wait in files, are handed out once whatever happens, and hold nothing that opens them."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from dicom_node.core.errors import ConfigError, Unavailable
from dicom_node.core.pki import self_signed
from secure_infer.dealing import pool as pools
from secure_infer.dealing.bundlefile import SUFFIX
from secure_infer.dealing.pool import LARGEST_ORDERS, Limits, Pool
from secure_infer.protocol.dealer import Dealing, Order
from secure_infer.protocol.manifest import Signer, hashed, verified
from secure_infer.protocol.plan import Plan
from secure_infer.protocol.prg import bundle_name, material_key
from secure_infer.protocol.seal import unseal
from tests.secure_infer.small_dealer import HOSPITAL, MASTER, PARTY, SEALING_KEY, SIGNER, dealing, order
from tests.secure_infer.small_model import weights_of
from tests.secure_infer.small_network import Trio, every_kind

PLAN = Plan(every_kind())
ORDER = order(PLAN)
SIZE = sum(PLAN.materials.values())


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def opened(
    folder: Path, made: Dealing | None = None, clock: Callable[[], float] = lambda: 1e9, **limits: float
) -> Pool:
    """A pool as a new process would open it."""
    given = {"bundles": 3, "bytes": 1 << 30, "idle_s": 100.0, **limits}
    return Pool(folder, made or dealing(), Limits(**given), frozenset({HOSPITAL}), frozenset({PARTY}), clock=clock)


def reopened(pool: Pool, folder: Path, made: Dealing | None = None, **limits: float) -> Pool:
    pool.close()
    return opened(folder, made, **limits)


def taken(pool: Pool, what: Order = ORDER) -> bytes:
    parcel = pool.take(what)
    parcel.burn()
    return parcel.dealt.bundle


def fill(pool: Pool) -> int:
    count = 0
    while pool.fill(1e9):
        count += 1
    return count


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/*{SUFFIX}"))


def test_a_query_on_a_bundle_dealt_ahead_gives_the_right_answer(tmp_path):
    made = every_kind()
    pool = opened(tmp_path)
    taken(pool)
    fill(pool)
    ahead = Trio(made, weights_of(made), stock=pool)
    image = np.random.default_rng(1).uniform(-1, 1, made.input_shape)
    assert np.abs(ahead.ask(image) - Trio(made, weights_of(made)).ask(image)).max() < 1e-3
    assert pool.figures()["handed_out"] == 1


def test_the_first_request_is_dealt_at_once_and_has_the_next_ones_dealt_ahead(tmp_path):
    pool = opened(tmp_path)
    assert not pool.fill(1e9)
    taken(pool)
    assert pool.figures()["dealt_on_demand"] == 1
    assert fill(pool) == 3
    waiting = {path.stem for path in files(tmp_path)}
    assert {taken(pool).hex() for _ in range(3)} == waiting
    assert pool.figures()["handed_out"] == 3
    assert files(tmp_path) == []
    assert taken(pool).hex() not in waiting  # an empty pool deals on demand
    assert pool.figures()["dealt_on_demand"] == 2


def test_the_material_of_a_taken_bundle_is_that_of_its_manifest_and_its_seed_is_the_hospitals(tmp_path):
    pool = opened(tmp_path)
    taken(pool)
    fill(pool)
    parcel = pool.take(ORDER)
    manifest = verified(parcel.dealt.signed, SIGNER.fingerprint)
    key = material_key(dealing().weight_mask_seed(ORDER), manifest.bundle)
    assert tuple(hashed(key, part) for part in parcel.materials()) == manifest.materials
    assert bundle_name(unseal(parcel.dealt.sealed, SEALING_KEY, manifest.digest)) == manifest.bundle
    parcel.burn()
    parcel.burn()


def test_no_seed_and_no_key_is_in_the_files(tmp_path):
    seeds = [bytes([number]) * 32 for number in range(4)]
    drawn = iter(seeds)
    made = dealing(random=lambda size: next(drawn))
    pool = opened(tmp_path, made)
    taken(pool)
    fill(pool)
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(content) > 3 * SIZE
    for secret in (*seeds, MASTER, made.weight_mask_seed(ORDER)):
        assert secret not in content


@pytest.mark.parametrize(("limits", "count"), [({"bundles": 0}, 0), ({"bytes": int(2.5 * SIZE)}, 2), ({}, 3)])
def test_dealing_ahead_stops_at_its_limits(tmp_path, limits, count):
    pool = opened(tmp_path, **limits)
    taken(pool)
    assert fill(pool) == count
    figures = pool.figures()
    assert (figures["bundles"], figures["orders"]) == (count, 1)
    assert figures["bytes"] == sum(path.stat().st_size for path in files(tmp_path))


def test_a_restart_serves_what_waited_and_nothing_that_was_taken(tmp_path):
    pool = opened(tmp_path)
    taken(pool)
    fill(pool)
    kept_open = pool.take(ORDER)  # handed to party 0; its process ends before party 1 asks
    pool = reopened(pool, tmp_path)
    names = {taken(pool) for _ in range(2)}
    assert pool.figures()["dealt_on_demand"] == 0
    assert kept_open.dealt.bundle not in names | {taken(pool)}
    kept_open.burn()


def test_a_restart_fills_the_pool_again_without_a_request(tmp_path):
    pool = opened(tmp_path)
    taken(pool)
    assert fill(reopened(pool, tmp_path)) == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: content[:-12] + bytes(12),
        lambda content: content[:-20] + bytes(8) + content[-12:],
    ],
)
def test_a_damaged_file_is_burned_and_the_next_one_is_handed_out(tmp_path, harm):
    pool = opened(tmp_path)
    taken(pool)
    fill(pool)
    pool = reopened(pool, tmp_path)
    first = next(iter(pool._shelves.values())).ready[0][0]
    first.write_bytes(harm(first.read_bytes()))
    assert taken(pool).hex() != first.stem
    assert pool.figures()["burned"] == 1
    assert not first.exists()


def test_a_bundle_under_another_ones_name_is_burned(tmp_path):
    pool = opened(tmp_path)
    taken(pool)
    fill(pool)
    first, second, _ = files(tmp_path)
    shutil.copy(first, second)
    pool = reopened(pool, tmp_path)
    names = [taken(pool) for _ in range(2)]
    assert len(set(names)) == 2
    assert second.stem not in {name.hex() for name in names}


def test_what_was_half_written_when_the_process_died_is_burned(tmp_path):
    pool = opened(tmp_path)
    taken(pool)
    fill(pool)
    (shelf,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (shelf / "99-0.part").write_bytes(b"x" * 100)
    (tmp_path / "stray").write_bytes(b"x")
    reopened(pool, tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "stray").exists()
    assert len(files(tmp_path)) == 3


def other_certificate() -> Dealing:
    key = Ed25519PrivateKey.generate()
    return dealing(signer=Signer(self_signed("renewed", key), key))


@pytest.mark.parametrize("made", [other_certificate(), dealing(master=b"n" * 32)], ids=["certificate", "master key"])
def test_bundles_of_a_replaced_certificate_or_master_key_are_dropped(tmp_path, made):
    pool = opened(tmp_path)
    taken(pool)
    fill(pool)
    pool = reopened(pool, tmp_path, made)
    assert pool.figures()["orders"] == 0
    assert files(tmp_path) == []


def test_orders_of_a_hospital_that_is_no_longer_on_the_list_are_dropped(tmp_path):
    stranger = order(PLAN, hospital=b"x" * 32)
    pool = opened(tmp_path)
    taken(pool, stranger)
    fill(pool)
    assert reopened(pool, tmp_path).figures()["orders"] == 0


@pytest.mark.parametrize("content", [b"", b"\1" * 40, b"\2" + bytes(400), b"\1" + bytes(176) + b"{}"])
def test_an_order_that_cannot_be_read_is_dropped(tmp_path, content):
    pool = opened(tmp_path)
    taken(pool)
    next(tmp_path.glob("*/order")).write_bytes(content)
    assert reopened(pool, tmp_path).figures()["orders"] == 0
    assert list(tmp_path.iterdir()) == []


def test_bundles_of_an_older_model_are_dropped_once_another_one_is_asked_for_alone(tmp_path):
    clock = Clock()
    pool = opened(tmp_path, clock=clock)
    newer = order(PLAN, model=b"2" * 32)
    taken(pool)
    fill(pool)
    clock.now += 90
    taken(pool, newer)
    pool.fill(clock.now + 9)
    assert pool.figures()["orders"] == 2
    pool.fill(clock.now + 11)
    assert pool.figures()["orders"] == 1
    pool.fill(clock.now + 1e6)  # the only one stays through any idle time
    assert pool.figures()["orders"] == 1
    assert len(files(tmp_path)) == 3


def test_one_hospital_cannot_take_the_pool_with_ever_new_orders(tmp_path):
    pool = opened(tmp_path)
    for number in range(3 * LARGEST_ORDERS):
        taken(pool, order(PLAN, model=bytes([number]) * 32))
    assert pool.figures()["orders"] == LARGEST_ORDERS
    assert pool.figures()["dealt_on_demand"] == 3 * LARGEST_ORDERS


def test_the_order_with_fewest_bundles_is_filled_first(tmp_path):
    pool = opened(tmp_path)
    taken(pool)
    for _ in range(2):
        pool.fill(1e9)
    starved = order(PLAN, model=b"2" * 32)
    taken(pool, starved)
    pool.fill(1e9)
    taken(pool, starved)
    assert pool.figures()["handed_out"] == 1


def test_dealing_ahead_waits_while_a_request_is_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "LONGEST_YIELD_S", 60.0)
    pool = opened(tmp_path, bundles=1)
    taken(pool)
    filler = threading.Thread(target=pool.fill, args=(1e9,))
    with pool.request():
        filler.start()
        filler.join(timeout=0.3)
        assert filler.is_alive()
        assert files(tmp_path) == []
    filler.join(timeout=30)
    assert len(files(tmp_path)) == 1


def test_two_dealers_cannot_share_a_pool(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path)
    assert caught.value.code == "pool"
    reopened(first, tmp_path)


def test_a_disk_that_is_gone_makes_the_dealer_unavailable(tmp_path):
    pool = opened(tmp_path / "pool")
    taken(pool)
    fill(pool)
    shutil.rmtree(tmp_path / "pool")
    for _ in range(3):
        with pytest.raises(Unavailable):
            pool.take(ORDER)
    with pytest.raises(Unavailable):
        pool.take(ORDER)
    with pytest.raises(Unavailable):
        opened(tmp_path / "pool" / "x" / ("y" * 300))


class HandedOut(RuleBasedStateMachine):
    """Whatever order of dealing, taking, copies of files and restarts: no bundle leaves the dealer twice."""

    folder: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(os.environ["POOL_TEST"]) / hashlib.sha256(str(id(self)).encode()).hexdigest()
        self.pool = opened(self.folder)
        self.seen: set[bytes] = set()

    @rule(model=st.integers(0, 1))
    def take(self, model: int) -> None:
        name = taken(self.pool, order(PLAN, model=bytes([model]) * 32))
        assert name not in self.seen
        self.seen.add(name)

    @rule()
    def deal_ahead(self) -> None:
        self.pool.fill(1e9)

    @rule()
    def restart(self) -> None:
        self.pool = reopened(self.pool, self.folder)

    def teardown(self) -> None:
        self.pool.close()


def test_no_bundle_leaves_the_dealer_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("POOL_TEST", str(tmp_path))
    run_state_machine_as_test(
        HandedOut, settings=settings(max_examples=20, stateful_step_count=20, deadline=None, database=None)
    )
