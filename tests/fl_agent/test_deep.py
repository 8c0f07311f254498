"""Private networks from the data set to a published card: what is public, what bounds follow, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dicom_node.core.errors import ConfigError
from fl_agent import deep
from fl_agent.__main__ import app
from fl_agent.deep import PLANS, Plan, make
from fl_agent.order import Order
from fl_agent.randomness import SecureSource
from fl_agent.trainset import read_image, read_manifest
from secure_infer.clear import PlaintextEngine
from secure_infer.models import ModelStore, public_hex, signing_key
from secure_infer.public import Greys, Prefix, public_part
from tests.fl_agent.small_dataset import write


def arguments(folder: Path, *more: str) -> list[str]:
    found = ["train", "--version", "0.1", "--epsilon", "20", "--threads", "1", *more]
    for option, name in {"data": "data", "out": "models", "cache": "cache", "signing-key": "key.pem"}.items():
        found += [f"--{option}", str(folder / name)]
    return found


def quick(monkeypatch: pytest.MonkeyPatch, **changed: float) -> None:
    """Take few steps, of many patients each."""
    plans = {name: Plan(replace(plan.recipe, sampling_rate=0.25, **changed), 64) for name, plan in PLANS.items()}
    monkeypatch.setattr(deep, "PLANS", plans)


def test_one_command_trains_private_stages_and_publishes_what_a_hospital_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, steps=15)
    data = tmp_path / "data" / "kermany224"
    write(data, train=120, test=6)
    result = CliRunner().invoke(app, arguments(tmp_path, "--network", "efficientnet-lite0", "--cut", "head"))
    assert result.exit_code == 0, result.output
    store = ModelStore(tmp_path / "models", [public_hex(signing_key(tmp_path / "key.pem"))])
    card = store.verify("0.1")
    assert 18.0 < card.privacy.epsilon <= 20.0
    descent = {one.name: one for one in card.privacy.mechanisms}["network"]
    assert (descent.kind, descent.steps, descent.sampling_rate) == ("DP-SGD", 15, 0.25)
    assert card.suffix.input_shape == (1280, 7, 7)
    public = public_part(card)
    assert isinstance(public, Prefix)
    features = public.features(read_image(data, read_manifest(data, "test"), 0))
    answer = PlaintextEngine(card.suffix, store.weights("0.1")).infer(features)
    assert (answer.logits.shape, answer.evidence) == ((3,), None)


def test_what_a_whole_network_learned_is_what_its_program_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, steps=2)
    data = tmp_path / "data" / "kermany224"
    write(data, train=12, test=6)
    films = read_manifest(data, "train")
    order = Order(tmp_path / "data", tmp_path, "1", 20.0, 1e-4, 0, network="small-cnn")
    learned = deep.learn(order, films, SecureSource(), lambda what, done, total: None)
    assert learned.trunk is None
    assert learned.program.input_shape == (1, 128, 128)
    taken = learned.preprocessing
    public = Greys(taken.side, 1, taken.offset, taken.divisor)
    engine = PlaintextEngine(learned.program, learned.weights)
    found = [engine.infer(public.features(read_image(data, films, number))).logits for number in range(3)]
    np.testing.assert_allclose(learned.logits(films, "training images")[:3], found, atol=1e-3)
    assert [one.patients for one in learned.mechanisms] == [12]


def test_a_network_or_cut_that_does_not_exist_is_refused_before_any_patient_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "data" / "kermany224", train=3, test=3)
    for options, code in (
        (("--network", "resnet1800"), 2),
        (("--network", "small-cnn", "--cut", "block3"), 78),
        (("--network", "efficientnet-lite0", "--cut", "block99"), 78),
        (("--cut", "block3"), 78),
    ):
        result = CliRunner().invoke(app, arguments(tmp_path, *options))
        assert result.exit_code == code, options
    assert not (tmp_path / "models").exists()


def test_two_compilations_of_one_network_agree_to_the_last_bit() -> None:
    made = make("efficientnet-lite0", cut="head")
    assert made.compiled().program == made.compiled().program
    with pytest.raises(ConfigError):
        make("resnet18", cut="block3")
