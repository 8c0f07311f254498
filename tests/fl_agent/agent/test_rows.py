"""An agent's examples are the patients who agree at that moment and whom the plan is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import Refused
from dicom_node.core.settings import Population
from dicom_node.training.consent import Decision
from fl_agent.agent.rows import SitePatients
from tests.fl_agent.learning.hospitals import plan
from tests.fl_agent.test_site_rows import CHILDREN, Hospital
from tests.fl_agent.trunks import setup
from tests.scp_process import site


def test_examples_follow_consent_and_the_plan(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    patients = SitePatients(site(tmp_path / "state"), hospital.database, clock=lambda: 3.0)
    wanted = plan().model_copy(update={"trunk": setup("block13"), "channels": 192, "population": CHILDREN})
    rows = hospital.read()
    found = patients(wanted)
    assert found.count == 2
    np.testing.assert_array_equal(found.features, rows.features)
    np.testing.assert_array_equal(found.labels, rows.labels)

    quarters = patients(wanted.model_copy(update={"trunk": setup("block13", regions=2), "channels": 4 * 192}))
    assert quarters.features.shape == (*found.features.shape[:2], 4 * 192)
    # Taken together, the quarters are the whole image.
    together = quarters.features.reshape(*found.features.shape[:2], 4, 192).sum(2)
    directions = together / np.linalg.norm(together, axis=2, keepdims=True)
    np.testing.assert_allclose(directions, found.features, atol=1e-5)

    larger = patients(wanted.model_copy(update={"trunk": setup("block13", side=288)})).features
    assert larger.shape == found.features.shape
    assert np.abs(larger - found.features).max() > 0.01  # not from the features that were kept of the smaller images

    adults = wanted.model_copy(update={"population": Population(min_age_years=60, max_age_years=90)})
    assert patients(adults).count == 0
    hospital.decide(1, Decision.WITHDRAWN)
    assert patients(wanted).labels.tolist() == [2]
    absent, parted = ({"trunk": one} for one in (setup("block99"), setup("block13", regions=2)))
    for change in (absent, {"channels": 191}, parted, {"views": ("upside-down",)}):
        with pytest.raises(Refused) as error:
            patients(wanted.model_copy(update=change))
        assert error.value.code == "features"
    hospital.database.close()
