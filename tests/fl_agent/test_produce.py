"""One command makes a signed model, and the shipped one's account of its privacy recomputes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_agent.__main__ import app
from fl_agent.accounting import epsilon
from fl_agent.calibration import Calibrated
from secure_infer.answer import Answer
from secure_infer.card import ModelCard
from secure_infer.clear import PlaintextEngine
from secure_infer.models import SHIPPED, ModelStore, public_hex, signing_key
from secure_infer.public import public_part
from tests.fl_agent.small_dataset import write


@pytest.fixture(scope="module")
def shipped() -> ModelCard:
    store = ModelStore(SHIPPED)
    return store.card(store.active())


def test_the_shipped_epsilon_recomputes_from_the_recorded_mechanisms(shipped: ModelCard) -> None:
    privacy = shipped.privacy
    assert epsilon(privacy.mechanisms, privacy.delta) <= privacy.epsilon <= 3.0
    # Full batches compose exactly: mu is the root of the sum of 1 / multiplier^2 over all steps (Dong et al. 2019).
    for partition in {mechanism.partition for mechanism in privacy.mechanisms}:
        inside = [m for m in privacy.mechanisms if m.partition == partition]
        assert all(m.sampling_rate == 1.0 for m in inside)
        mu = math.sqrt(sum(m.steps / m.noise_multiplier**2 for m in inside))
        bound = privacy.epsilon
        gone = math.erfc((bound / mu - mu / 2) / math.sqrt(2)) / 2
        back = math.erfc((bound / mu + mu / 2) / math.sqrt(2)) / 2
        assert gone - math.exp(bound) * back <= privacy.delta
    assert all(privacy.delta < 1 / mechanism.patients for mechanism in privacy.mechanisms)


def test_the_shipped_figures_meet_what_the_model_promises(shipped: ModelCard) -> None:
    assert shipped.figure("auc_pneumonia").value >= 0.95
    assert shipped.figure("auc_bacterial_viral").value >= 0.92
    for figure in shipped.figures:
        assert figure.low <= figure.value <= figure.high
    sizes = {count.split: count for count in shipped.data.splits}
    assert sum(sizes["test"].images) == shipped.figures[0].images
    assert {m.patients for m in shipped.privacy.mechanisms} == {
        sum(sizes["train"].patients),
        sum(sizes["validation"].patients),
    }


def test_the_head_on_the_mean_feature_gives_the_logits(shipped: ModelCard) -> None:
    weights = ModelStore(SHIPPED).weights(shipped.version)
    trunk = public_part(shipped)
    features = trunk.features(np.random.default_rng(0).uniform(0, 1, (224, 224)).astype(np.float32))
    logits = PlaintextEngine(shipped.suffix, weights).infer(features).logits
    pooled = weights["head.weight"][:, :, 0, 0] @ features.mean((1, 2)) + weights["head.bias"]
    np.testing.assert_allclose(pooled, logits, atol=1e-9)
    answer = Answer.from_logits(logits, shipped)
    calibrated = Calibrated(shipped.calibration.scale, shipped.calibration.offsets, 0.0, ())
    np.testing.assert_allclose(calibrated.probabilities(logits)[1:], [answer.bacterial, answer.viral], atol=1e-9)


def test_one_command_trains_and_publishes_a_model(tmp_path: Path) -> None:
    write(tmp_path / "data" / "kermany224", train=150, test=12)
    arguments = ["train", "--version", "0.1", "--epsilon", "20", "--threads", "1"]
    for option, name in {"data": "data", "out": "models", "cache": "cache", "signing-key": "key.pem"}.items():
        arguments += [f"--{option}", str(tmp_path / name)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "auc_pneumonia" in result.output
    publisher = public_hex(signing_key(tmp_path / "key.pem"))
    store = ModelStore(tmp_path / "models", [publisher])
    card = store.verify("0.1")
    assert card.privacy.epsilon <= 20.0
    assert card.privacy.epsilon == pytest.approx(20.0, rel=0.05)
    assert card.data.splits[0].patients == (42, 42, 42)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 78
    assert "already published" in again.output
