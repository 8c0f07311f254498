"""Mean and deviation of the features over hospitals: one noised, accounted secure sum that survives a lost one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import ProtocolError
from dicom_node.core.training_settings import PrivacySettings
from fl_agent.head import patient_means
from fl_agent.learning import server, site, state
from fl_agent.learning.plan import Plan
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.server import Training
from fl_agent.learning.state import State
from fl_agent.learning.terms import MEAN, epsilons, header, releases, sensitivity_squared, spendings
from fl_agent.ledger import accountant
from fl_agent.randomness import SecureSource
from fl_agent.simulate import arithmetic
from tests.fl_agent import federations
from tests.fl_agent.learning.hospitals import CHANNELS, SIZES, examples, plan, pooled, three
from tests.fl_agent.trunks import setup

#: For tests alone: at such an epsilon there is next to no noise.
NOISELESS = 1e7


def pooled_moments(everyone: site.Examples) -> tuple[np.ndarray, np.ndarray]:
    """The slow obvious way: mean and deviation over patients, of all hospitals in one place."""
    mean = patient_means(everyone.features, everyone.patients).mean(0)
    squares = patient_means(everyone.features**2, everyone.patients).mean(0)
    return mean, np.sqrt(squares - mean**2)


@pytest.mark.parametrize("mode", ["site", "distributed"])
def test_without_noise_mean_and_deviation_are_those_of_all_patients_together(mode: str) -> None:
    agreed = plan(mode, NOISELESS, rounds=1, options={"centre_noise": 1e-3, "squares": 1.0})
    sites, training = three(), Training.start(agreed)
    cohort = [bytes.fromhex(one.identity) for one in agreed.members]
    assert header(agreed, 0, training.state().encode(), 1, cohort).dimension == 2 * CHANNELS + 1
    given = [
        site.contribution(agreed, one, training.state(), sites[one.name], SecureSource()) for one in agreed.members
    ]
    unit = releases(agreed)[0].norm / agreed.resolution if mode == "distributed" else 1.0
    total = [unit * sum(np.asarray(one[block], dtype=np.float64) for one in given) for block in range(3)]
    assert total[2][0] == pytest.approx(sum(SIZES.values()), abs=0.1)
    # The public sizes may be wrong: who was counted is in the sum.
    training, _ = server.after(agreed, training, total, agreed.members[:1])
    mean, deviation = pooled_moments(pooled(sites))
    np.testing.assert_allclose(training.centre, mean, atol=1e-3)
    np.testing.assert_allclose(training.deviations, deviation, atol=2e-3)


def test_a_patient_moves_the_first_sum_by_no_more_than_the_accountant_believes() -> None:
    agreed, rows = plan(options={"squares": 0.25}), examples(30, 3)
    kept = rows.patients < 29
    without = site.Examples(rows.features[kept], rows.labels[kept], rows.patients[kept])
    start = Training.start(agreed).state()
    moved = 0
    for one, sign in ((rows, 1), (without, -1)):
        moved = moved + sign * np.concatenate(site.contribution(agreed, agreed.members[0], start, one, SecureSource()))
    assert moved[-1] == round(agreed.resolution / np.sqrt(3))
    assert int((moved**2).sum()) <= sensitivity_squared(agreed, releases(agreed)[0])
    squares = moved[CHANNELS:-1] / agreed.resolution * np.sqrt(3)
    assert np.linalg.norm(squares) == pytest.approx(1.0, abs=1e-3)  # beyond a quarter, so it is clipped


def test_the_first_sum_is_a_part_of_what_the_plan_costs() -> None:
    agreed = plan(options={"squares": 0.5})
    first = releases(agreed)[0]
    assert (first.name, first.lengths) == (MEAN, (CHANNELS, CHANNELS, 1))
    assert epsilons(agreed).claimed <= 3.0
    (spent,) = spendings(agreed, first)
    alone = accountant.loss(spent).planned(agreed.delta)
    assert epsilons(agreed, (1, 0)).claimed == alone > 0


def test_a_plan_may_scale_each_feature_and_its_model_takes_them_as_they_are() -> None:
    sizes = {"north": 400, "south": 700, "west": 1200}
    sites = {name: examples(size, seed) for seed, (name, size) in enumerate(sizes.items())}
    agreed = plan(rounds=12, sizes=sizes, options={"squares": 0.5})
    assert Plan.read(agreed.content).centre == agreed.centre
    trained = arithmetic.train(agreed, sites)
    fresh = examples(600, 9)
    logits = fresh.features.mean(1) @ trained.weights["head.weight"].T + trained.weights["head.bias"]
    assert (logits.argmax(1) == fresh.labels).mean() > 0.75


def test_a_state_of_such_a_plan_holds_deviations_above_zero() -> None:
    agreed = plan(options={"squares": 0.5})
    training = Training.start(agreed)
    assert Training.read(training.encode()).encode() == training.encode()
    found = state.read(agreed, training.state().encode())
    assert np.array_equal(found.deviations, np.ones(CHANNELS, np.float32))
    flat = State(0, found.centre, found.weights, np.zeros(CHANNELS, np.float32))
    for wrong in (flat, State(0, found.centre, found.weights)):
        with pytest.raises(ProtocolError):
            state.read(agreed, wrong.encode())


def test_a_hospital_that_is_lost_in_the_first_sum_is_not_counted(memory: Path) -> None:
    frames = 0

    def lost(name: str, frame: bytes) -> bool:
        nonlocal frames
        frames += name == "site-3"
        return name == "site-3" and frames >= 3  # it has heard of the plan and of the round

    privacy = PrivacySettings(epsilon=4 * NOISELESS, delta=1e-3)
    with federations.federation(memory, 4, lost, privacy) as made:
        budget = Budget(NOISELESS, 1e-3, "distributed")
        features = Features(setup("head"), ("plain", "mirrored"), CHANNELS)
        agreed = propose(
            "1.0", made.members, features, budget, default_descent(1, 2), centre_noise=1e-3, squares=1.0
        )  # fmt: skip
        made.coordinator.open(agreed)
        while True:
            made.coordinator.run_once()
            current = made.records.newest()
            assert current is not None
            if current.training.done:
                break
        assert made.records.events(agreed)[-1][1:] == ("summed", 3)
        there = {name: rows for name, rows in federations.sites(4).items() if name != "site-3"}
        mean, deviation = pooled_moments(pooled(there))
        np.testing.assert_allclose(current.training.centre, mean, atol=5e-3)
        np.testing.assert_allclose(current.training.deviations, deviation, atol=5e-3)
