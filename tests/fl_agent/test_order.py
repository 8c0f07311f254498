"""What may be ordered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dicom_node.core.errors import ConfigError
from fl_agent.__main__ import app
from fl_agent.order import Order


def test_mixup_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two patients") as error:
        Order(tmp_path, tmp_path, "1.0", 3.0, 1e-4, 1, mixup=0.2)
    assert error.value.code == "mixup"
    command = ["train", "--data", str(tmp_path), "--out", str(tmp_path), "--version", "1", "--mixup", "0.2"]
    called = CliRunner().invoke(app, [*command, "--signing-key", str(tmp_path / "key.pem")])
    assert called.exit_code == ConfigError.exit_status
    assert "mixup" in called.output


def test_what_the_refusal_says_of_mixup_is_true() -> None:
    """With blends, one patient moves a sum of clipped gradients by more than the clip that the noise is made for."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)

    def clipped_sum(rows: np.ndarray) -> np.ndarray:
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 0.5)).sum(0) * 0.5

    other = features.copy()
    other[3] = 0.0  # as if that patient were not there
    assert np.linalg.norm(clipped_sum(features) - clipped_sum(other)) <= 0.5 + 1e-9
    blended, without = (0.5 * rows + 0.5 * np.roll(rows, 1, axis=0) for rows in (features, other))
    assert np.linalg.norm(clipped_sum(blended) - clipped_sum(without)) > 0.5
