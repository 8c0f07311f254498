"""The coordinator as a program: its default plan is one that hospitals accept, and a refused run is no quiet end."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dicom_node.core import settings
from dicom_node.core.errors import ConfigError, Refused
from dicom_node.core.training_settings import FederationSettings, PrivacySettings
from fl_agent.agent.rules import Rules
from fl_agent.coordinator.records import FINISHED, Records
from fl_agent.coordinator.service import plan_of, serve
from fl_agent.coordinator.settings import CoordinatorSettings
from tests.fl_agent.trunks import setup

EXAMPLE = Path(__file__).parents[3] / "orthanc_config" / "coordinator.example.toml"
KEYS = [str(number) * 64 for number in (1, 2, 3)]


def file(folder: Path, delta: str = "") -> Path:
    """The example's settings, in a folder, for agents of this machine who are all away."""
    text = (
        EXAMPLE.read_text()
        .replace("/var/lib/veilray-coordinator", str(folder))
        .replace('#kind = "nvflare"', 'kind = "local"')
    )
    text = re.sub(r"^(patients = .*)$", rf'\1\nsocket = "{folder}/away.sock"', text, flags=re.MULTILINE)
    (folder / "coordinator.toml").write_text(
        text.replace("#delta = 1e-5", delta).replace("#rounds = 120", "rounds = 3")
    )
    return folder / "coordinator.toml"


def judged(folder: Path, delta: str = "") -> None:
    """Have a hospital with the default limits look at the plan; three is the least that a cohort can be."""
    plan = plan_of(settings.read(file(folder, delta), CoordinatorSettings))
    rules = FederationSettings(
        identity_file=Path("unused"), coordinator="0" * 64, roster=tuple(KEYS[1:]), minimum_cohort=3
    )
    Rules(rules, PrivacySettings()).check(plan, bytes.fromhex(KEYS[0]))


def test_the_default_plan_is_within_the_default_limits_of_a_hospital(tmp_path: Path) -> None:
    judged(tmp_path)
    with pytest.raises(Refused, match=r"costs epsilon 3\.4"):
        judged(tmp_path, "delta = 1e-4")


def run_with(folder: Path, **changes: object) -> CoordinatorSettings:
    loaded = settings.read(file(folder), CoordinatorSettings)
    return CoordinatorSettings.model_validate(
        loaded.model_dump() | {"run": {**loaded.run.model_dump(), "trunk": setup("head").model_dump(), **changes}}
    )


def test_a_run_may_scale_features_by_their_deviation_and_end_early(tmp_path: Path) -> None:
    plan = plan_of(run_with(tmp_path, squares=1.0, patience=5, published="ema", ema=0.8))
    assert plan.centre is not None
    assert (plan.centre.squares, plan.descent.patience, plan.descent.ema) == (1.0, 5, 0.8)
    plain = plan_of(run_with(tmp_path, published="ema", ema=0.8))
    assert plain.centre is not None
    assert (plain.centre.squares, plain.descent.patience) == (None, 0)


def test_settings_of_a_run_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="publish best, ema or last"):
        plan_of(run_with(tmp_path, patience=5))
    with pytest.raises(ConfigError, match="section run"):
        plan_of(run_with(tmp_path, published="best", metrics_weight=0.0))


@pytest.fixture
def signals() -> Iterator[None]:
    """Handlers of this process, which a service sets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_run_that_was_refused_is_named_again_whenever_it_is_started(tmp_path: Path) -> None:
    config = file(tmp_path)
    loaded = settings.read(config, CoordinatorSettings)
    with closing(Records(loaded.state_dir / "coordinator.sqlite3")) as records:
        plan = plan_of(loaded)
        records.open(plan, 0.0)
        records.answered(plan, "north", "epsilon-too-large")
        records.answered(plan, "west", "accepted")
        records.ended(plan, "epsilon-too-large")
        with pytest.raises(ConfigError, match=r"refused by north \(epsilon-too-large\);"):
            serve(config)
        records.ended(plan, FINISHED)
        assert serve(config) == 0
