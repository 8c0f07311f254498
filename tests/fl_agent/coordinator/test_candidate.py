"""What a coordinator publishes says how quarters differ in a usual image, from the mean feature that it has anyway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dicom_node.core.settings import Population
from fl_agent.coordinator.candidate import Publisher
from fl_agent.learning.plan import Member, Plan
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.server import Training
from secure_infer.clear import PlaintextEngine
from secure_infer.models import ModelStore
from secure_infer.public import public_part
from secure_infer.regions import shares
from tests.fl_agent.trunks import setup
from tests.secure_infer.small_model import PUBLISHER, PUBLISHER_HEX


def planned(patients: int) -> Plan:
    members = [Member(name=f"site-{n}", identity=f"{n:064x}", patients=patients) for n in range(3)]
    features, budget = Features(setup("block13", regions=2), ("plain",), 4 * 192), Budget(3.0, 1e-4, "site")
    return propose("1.0", members, features, budget, default_descent(5))


def test_of_few_patients_nothing_is_said_that_noise_would_drown(tmp_path: Path) -> None:
    publisher = Publisher(
        ModelStore(tmp_path, [PUBLISHER_HEX]), PUBLISHER, Population(min_age_years=1, max_age_years=5)
    )
    for patients, version, said in ((4000, "1.1", True), (40, "1.2", False)):
        plan = planned(patients).model_copy(update={"version": version})
        average = np.random.default_rng(0).normal(size=plan.dimension)
        card = publisher.publish(plan, replace(Training.start(plan), average=average))
        assert (card.calibration.quarters is not None) == said


def test_of_an_image_like_the_mean_one_no_quarter_speaks_for_more_than_another(tmp_path: Path) -> None:
    plan = planned(4000)
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (224, 224)).astype(np.float32)
    store = ModelStore(tmp_path, [PUBLISHER_HEX])
    publisher = Publisher(store, PUBLISHER, Population(min_age_years=1, max_age_years=5))
    trunk = public_part(publisher.publish(plan.model_copy(update={"version": "0.9"}), Training.start(plan)))
    seen = trunk.features(image)
    learned = replace(Training.start(plan), centre=seen.mean((1, 2)), average=rng.normal(size=plan.dimension))
    card = publisher.publish(plan, learned)
    assert (card.trunk.regions, card.preprocessing.side) == (2, 224)

    evidence = PlaintextEngine(card.suffix, store.weights("1.0")).infer(seen).evidence
    usual = np.tensordot(shares(2, 7), np.array(card.calibration.quarters), (0, 0))
    assert np.abs(usual).max() > 0.1
    np.testing.assert_allclose(usual.mean((0, 1)), 0.0, atol=1e-3)
    # The quarters' own positions, where no other quarter weighs, agree better without what the card says of them.
    corners = [(slice(3), slice(3)), (slice(3), slice(4, 7)), (slice(4, 7), slice(3)), (slice(4, 7), slice(4, 7))]
    before, after = ([one[corner].mean((0, 1)) for corner in corners] for one in (evidence, evidence - usual))
    assert np.ptp(after, axis=0).sum() < 0.5 * np.ptp(before, axis=0).sum()
