"""Every fault of party 1 and dealer: named, its bundle burned, tried anew, and the report the same."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from dicom_node import phantom
from dicom_node.assembler import Assembler
from dicom_node.core.database import Database, audit_event, job
from dicom_node.core.settings import Settings
from dicom_node.store import Store
from secure_infer.dealt import DealtEngine
from secure_infer.network import Trunk
from secure_infer.worker import Worker
from tests.secure_infer.small_model import publish
from tests.secure_infer.small_network import every_kind
from tests.system.faults import FAULTS, World, dealt_again, spent
from tests.system.relay import Relay, honest
from tests.system.roles import Roles

NOW = 1_750_000_000.0
TIMEOUT_S = 2.0
#: A fault is named within its time-outs; without any it would last for ever.
PATIENCE_S = 60.0
KINDS = ("head", "network")
#: A head is a small network: of what may happen to it, the hardest is enough.
CASES = [("network", name) for name in FAULTS] + [("head", name) for name in FAULTS if "killed" in name]


class SmallTrunk:
    """A public part whose output is a small network's input: the picture in six by six fields, and its negative."""

    def features(self, image: np.ndarray) -> np.ndarray:
        fields = np.asarray(image, np.float64)[:222, :222].reshape(6, 37, 6, 37).mean((1, 3))
        fields = (fields - fields.min()) / np.ptp(fields)
        return np.stack([fields, 1 - fields])


class Site:
    """A hospital with one complete study, whose worker classifies it when told to."""

    def __init__(self, folder: Path, world: World, kind: str) -> None:
        self.folder, self.now = folder, NOW
        self.inference = world.roles.inference(
            timeout_s=TIMEOUT_S, **{role: world.relays[role].endpoint for role in ("party", "dealer")}
        )
        settings = Settings.model_validate(
            {"site": {"name": "Hospital", "state_dir": folder}, "inference": self.inference.model_dump(mode="json")}
        )
        self.database = Database(settings.database_url)
        self.database.migrate()
        store = Store(settings, self.database, clock=lambda: self.now)
        study = phantom.Study.numbered(1, key="faults")
        content = io.BytesIO()
        picture = phantom.draw(1, "consolidation", (256, 256))
        phantom.dataset(picture, study=study).save_as(content, enforce_file_format=True)
        store.add_file(content.getvalue(), "test")
        self.now += settings.assembler.quiet_s
        Assembler(settings, self.database, store, open_studies=set).run_once(self.now)
        self.engine = DealtEngine(world.cards[kind], self.inference, folder / "bundles")
        self._worker = Worker(
            settings, self.database, store, world.cards[kind], world.trunks[kind], self.engine,
            owner="test", clock=lambda: self.now,
        )  # fmt: skip

    def work(self) -> sa.Row[Any]:
        """Let the worker take the job, which is due; what became of it."""
        assert self._worker.run_once()
        with self.database.read() as connection:
            found = connection.execute(sa.select(job).where(job.c.kind == "classify")).one()
        self.now += 1000.0  # longer than any pause before the next try
        return found

    def audited(self, what: str) -> dict[str, Any]:
        """The details of one row of the hospital's trail."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(audit_event).where(audit_event.c.event_type == what))
            return rows.one().detail

    @property
    def spent(self) -> set[bytes]:
        return spent(self.folder / "bundles")

    def close(self) -> None:
        self.engine.close()
        self.database.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    roles = Roles(tmp_path_factory.mktemp("faults"), timeout_s=2 * TIMEOUT_S)
    cards = {"head": roles.cards["map"], "network": publish(roles.models, every_kind(), version="network")}
    try:
        roles.start_dealer()
        found = World(roles, cards, {"head": Trunk(), "network": SmallTrunk()}, Relay(roles, "dealer", "party"), {})
        roles.between = found.between.endpoint
        roles.start_party()
        yield found
        found.between.close()
    finally:
        roles.stop()


@pytest.fixture
def made(world: World) -> Iterator[World]:
    world.start_relays()
    yield world
    world.stop_relays()


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The hashes of the reports that the study gets when nothing happens."""
    world.start_relays()
    found = {}
    for kind in KINDS:
        site = Site(tmp_path_factory.mktemp(kind), world, kind)
        done = site.work()
        assert (done.state, done.attempts) == ("done", 1)
        found[kind] = [one["sha256"] for one in done.result["reports"]]
        site.close()
    world.stop_relays()
    return found


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_fault_is_named_burns_its_bundle_and_leaves_the_report_as_it_would_have_been(
    made, undisturbed, tmp_path, kind, name
):
    found = FAULTS[name]
    site = Site(tmp_path, made, kind)
    before = made.spent_by_party()
    mend = found.harm(made)
    started = time.monotonic()
    try:
        stopped = site.work()
        assert time.monotonic() - started < PATIENCE_S
    finally:
        for relay in made.relays.values():
            relay.spoil = honest
        mend()
    assert (stopped.state, stopped.attempts) == ("waiting", 1)
    assert stopped.code in found.codes
    burned = site.spent
    assert len(burned) == found.dealt
    assert made.spent_by_party() - before == (burned if found.opened else set())
    done = site.work()
    assert (done.state, done.attempts) == ("done", 2)
    fresh = site.spent - burned
    assert len(fresh) == 1
    assert made.spent_by_party() - before == fresh | (burned if found.opened else set())
    assert [one["sha256"] for one in done.result["reports"]] == undisturbed[kind]
    assert done.result["bundles"] == site.audited("study-classified")["bundles"] == [one.hex() for one in fresh]
    site.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_that_the_dealer_hands_out_again_is_not_computed_on(made, undisturbed, tmp_path, kind):
    sites = [Site(tmp_path / str(number), made, kind) for number in range(2)]
    mend = dealt_again(made)
    first, second = sites
    assert first.work().state == "done"
    before = made.spent_by_party()
    second.engine._ledger.close()  # both workers of one hospital share their marks
    second.engine._ledger = first.engine._ledger
    stopped = second.work()
    assert (stopped.state, stopped.code in {"bundle-reused", "wrong-bundle", "wrong-session"}) == ("waiting", True)
    assert made.spent_by_party() == before
    mend()
    done = second.work()
    assert [one["sha256"] for one in done.result["reports"]] == undisturbed[kind]
    for site in sites:
        site.close()
