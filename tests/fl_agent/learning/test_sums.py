"""What three hospitals compute together is what one would compute with all patients, less what rounding takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_agent.head import centred, linear_head
from fl_agent.learning import server, site
from fl_agent.learning.plan import Member
from fl_agent.learning.server import Training
from fl_agent.learning.state import State
from fl_agent.learning.terms import header, release_at, sensitivity_squared
from fl_agent.randomness import SecureSource
from fl_agent.secagg.encode import decode, encode
from fl_agent.simulate import arithmetic
from fl_agent.train import Recipe, descend, patient_rows
from tests.fl_agent.learning.hospitals import CHANNELS, SIZES, examples, plan, pooled, three


def test_the_sum_over_hospitals_is_that_over_all_patients_to_the_last_bit() -> None:
    agreed, sites = plan(), three()
    everyone = Member(name="all", identity="0" * 64, patients=sum(SIZES.values()))
    generator = np.random.default_rng(0)
    for done in (0, 1):
        weights = generator.normal(size=agreed.dimension).astype(np.float32)
        state = State(done, generator.normal(size=CHANNELS).astype(np.float32) / 9, weights)

        def given(own: Member, rows: site.Examples, state: State = state) -> np.ndarray:
            return np.concatenate(site.contribution(agreed, own, state, rows, SecureSource()))

        together = sum(given(one, sites[one.name]) for one in agreed.members)
        assert together.dtype == np.int64
        assert np.count_nonzero(together) > 0.9 * CHANNELS
        assert np.array_equal(together, given(everyone, pooled(sites)))


def test_without_noise_the_run_is_the_central_descent() -> None:
    agreed, sites = plan(rounds=9, momentum=0.9, averaged=0.5), three()
    training = Training.start(agreed)
    source = SecureSource()
    for done in range(agreed.sums):
        terms = header(agreed, done, b"", done + 1, [bytes.fromhex(one.identity) for one in agreed.members])
        total = np.zeros(terms.dimension, dtype=np.uint32)
        for one in agreed.members:  # as `arithmetic.train`, less its noise
            words = np.empty(terms.dimension, dtype=np.uint32)
            encode(terms, site.contribution(agreed, one, training.state(), sites[one.name], source), words)
            total += words
        training, _ = server.after(agreed, training, decode(terms, total), agreed.members)
    together = pooled(sites)
    module = linear_head(CHANNELS)
    rows = patient_rows(centred(together.features, training.centre), together.labels, together.patients)
    recipe = Recipe(9, 1.0, agreed.descent.clip, agreed.descent.learning_rate, 0.9, 0.5)
    central = descend(module, rows, recipe, 1e-9, source)["weight"].double().numpy().ravel()
    assert np.abs(central).max() > 0.5
    np.testing.assert_allclose(training.average, central, atol=2e-4)


def test_a_patient_moves_the_integers_by_no_more_than_the_accountant_believes() -> None:
    agreed, rows = plan(), examples(30, 3)
    state = State(
        1, np.zeros(CHANNELS, np.float32), np.full(agreed.dimension, 40, np.float32)
    )  # steep: all are clipped
    kept = rows.patients < 29
    without = site.Examples(rows.features[kept], rows.labels[kept], rows.patients[kept])
    both = [
        np.concatenate(site.contribution(agreed, agreed.members[0], state, one, SecureSource()))
        for one in (rows, without)
    ]
    moved = int(((both[0] - both[1]) ** 2).sum())
    assert moved <= sensitivity_squared(agreed, release_at(agreed, 1))
    # The gradient's norm is at its limit; that of the metrics is at most theirs, and at least one answer is counted.
    assert moved >= agreed.resolution**2 / (1 + agreed.metrics_weight**2) * 0.999


def test_a_row_that_is_no_number_counts_as_nothing() -> None:
    agreed, rows = plan(options={"metrics_weight": 0}), examples(30, 3)
    state = State(1, np.zeros(CHANNELS, np.float32), np.zeros(agreed.dimension, np.float32))
    broken = site.Examples(rows.features.copy(), rows.labels, rows.patients)
    broken.features[rows.patients == 29] = np.nan
    kept = rows.patients < 29
    without = site.Examples(rows.features[kept], rows.labels[kept], rows.patients[kept])
    one, other = (
        site.contribution(agreed, agreed.members[0], state, found, SecureSource())[0] for found in (broken, without)
    )
    assert np.array_equal(one, other)


@pytest.mark.parametrize("local_steps", [1, 3])
def test_local_steps_count_each_hospital_by_its_public_size(local_steps: int) -> None:
    agreed = plan("site", epsilon=1e5, local_steps=local_steps, options={"metrics_weight": 0})
    state = State(1, np.zeros(CHANNELS, np.float32), np.zeros(agreed.dimension, np.float32))
    sites, source = three(), SecureSource()
    given = {one.name: site.contribution(agreed, one, state, sites[one.name], source)[0] for one in agreed.members}
    training, _ = server.after(
        agreed, server.replace(Training.start(agreed), done=1), [sum(given.values())], agreed.members
    )
    # Each hospital's own descent, weighted by hand.
    expected = np.zeros(agreed.dimension)
    for name, rows in sites.items():
        recipe = Recipe(local_steps, 1.0, agreed.descent.clip, agreed.descent.learning_rate, 0.0, 0.0)
        inputs = patient_rows(centred(rows.features, np.zeros(CHANNELS)), rows.labels, rows.patients)
        found = descend(linear_head(CHANNELS), inputs, recipe, 1e-9, source)["weight"].double().numpy().ravel()
        expected += found * SIZES[name] / sum(SIZES.values())
    np.testing.assert_allclose(training.weights, expected, atol=0.02)
    assert np.abs(expected).max() > 0.1


def test_class_weights_count_a_class_more() -> None:
    rows = examples(30, 3)
    found = []
    for weights in ((1.0, 1.0, 1.0), (1.0, 3.0, 1.0)):
        agreed = plan(class_weights=weights, clip=1e3, options={"metrics_weight": 0})
        state = State(1, np.zeros(CHANNELS, np.float32), np.zeros(agreed.dimension, np.float32))
        ill = rows.labels == 1
        one = site.Examples(rows.features[ill], rows.labels[ill], np.unique(rows.patients[ill], return_inverse=True)[1])
        total = site.contribution(agreed, agreed.members[0], state, one, SecureSource())[0]
        found.append(total / agreed.resolution * agreed.descent.clip)
    np.testing.assert_allclose(found[1], 3 * found[0], atol=0.5)
    assert np.abs(found[0]).max() > 2


@pytest.mark.parametrize("mode", ["site", "distributed"])
def test_a_private_run_learns_what_tells_the_classes_apart(mode: str) -> None:
    torch.set_num_threads(1)
    sizes = {"north": 400, "south": 700, "west": 1200}
    sites = {name: examples(size, seed) for seed, (name, size) in enumerate(sizes.items())}
    agreed = plan(mode, rounds=12, sizes=sizes)
    trained = arithmetic.train(agreed, sites)
    fresh = examples(600, 9)
    logits = fresh.features.mean(1) @ trained.weights["head.weight"].T + trained.weights["head.bias"]
    assert (logits.argmax(1) == fresh.labels).mean() > 0.75
    assert trained.epsilons.claimed <= 3.0
    assert trained.epsilons.alone >= trained.epsilons.claimed
    first, last = (np.mean([one.loss for one in half]) for half in (trained.metrics[:3], trained.metrics[-3:]))
    assert last < first
