"""The benches of training run and give each figure that they promise, on data too small to say anything."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from fl_agent.head import RECIPE
from fl_agent.train import Recipe
from fl_agent.trainset import Films
from tests.bench import accuracy, dp, last_stages, order_out, scores
from tests.bench.__main__ import commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the benches run: threads that wait for a busy machine's other core cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_all_benches_run_together() -> None:
    here = Path(accuracy.__file__).parent
    programs = {one.stem for one in here.glob("*.py") if "argparse.ArgumentParser(" in one.read_text()}
    assert set(commands()) == programs - {"__main__", "crypten_stock", "hospital_process", "links"}


def test_the_bench_of_a_step_times_both_kinds_of_step_of_the_default_network() -> None:
    found = dp.measure("dp", 1, patients=60, steps=3)
    assert set(found) == {"dp_plain_step_s", "dp_step_s", "dp_step_ratio"}
    assert all(math.isfinite(value) and value > 0 for value in found.values())


def test_a_step_is_timed_from_the_end_of_the_one_before() -> None:
    def descent(steps: int, done: dp.Done) -> None:
        for step in range(steps):
            sum(range(10_000 if step == 0 else 200_000))
            done(step + 1, steps)

    times = dp.step_times(descent, 3)
    assert len(times) == 3
    assert min(times) > 0


def test_the_peak_of_memory_is_that_of_the_act_alone() -> None:
    # In a process of its own, as the bench does: memory that other tests have freed would be given out again.
    lines = ("import numpy as np", "from tests.bench import dp", "held = np.ones(30 << 17)")
    code = "\n".join([*lines, "print(dp.raised_mb(lambda: np.ones(60 << 17).sum()), held.sum())"])
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert 45 < float(said.split()[0]) < 90


def test_rows_like_the_data_sets_hold_every_patient_once_in_weight() -> None:
    rows = dp.head_rows(50, 8)
    assert rows.count == 50
    totals = [float(rows.weights[rows.patients == patient].sum()) for patient in range(50)]
    assert all(math.isclose(total, 1.0, rel_tol=1e-5) for total in totals)
    assert rows.inputs.shape[0] > 55  # some patients have several images


def part(patients: int, seed: int) -> accuracy.Part:
    """Draw children with one or two images each, whose class shows in three of twelve features."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, 3, patients))
    labels = owner % 3
    features = rng.normal(0, 0.3, (len(owner), 2, 12))
    features[np.arange(len(owner)), :, labels] += 1.5
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    names = tuple(str(one) for one in range(len(owner)))
    return accuracy.Part(Films(names, names, labels, owner), features.astype(np.float32))


def test_every_cell_of_accuracy_is_trained_and_scored_with_an_interval() -> None:
    recipe = replace(RECIPE, steps=10)
    found = accuracy.run(part(240, 1), part(60, 2), 1, epsilons=(8,), recipe=recipe, replicates=20)
    cells = {"central_nodp", "central_eps8", "fed_nodp", "fed_dist_eps8", "fed_site_eps8"}
    cells |= {f"local_site{number}_{name}" for number in (1, 2, 3) for name in ("nodp", "eps8")}
    wanted = ("auc_pneumonia", "auc_bacterial_viral", "sensitivity", "specificity", "mcc", "ece", "brier")
    for cell in cells:
        for name in wanted:
            value, low, high = (found[f"{cell}_{name}{end}"] for end in ("", "_low", "_high"))
            assert low <= high
            assert 0.0 <= value <= 1.0
    assert found["central_nodp_auc_pneumonia"] > 0.95
    assert found["fed_nodp_auc_pneumonia"] == pytest.approx(found["central_nodp_auc_pneumonia"], abs=0.02)
    assert found["seeds"] == 1


def test_hospitals_are_uneven_and_share_no_patient() -> None:
    whole = part(200, 3)
    parts = accuracy.hospitals(whole, 5)
    assert [one.films.count for one in parts] == [110, 60, 30]
    files = [set(one.films.files) for one in parts]
    assert sum(len(one) for one in files) == len(whole.films.files) == len(set.union(*files))
    for one in parts:  # the features went with their images
        places = [int(name) for name in one.films.files]
        np.testing.assert_array_equal(one.features, whole.features[places])


def test_calibration_and_correlation_are_those_of_the_definitions() -> None:
    labels = np.array([0, 0, 1, 2, 1, 0])
    pneumonia = np.array([0.1, 0.7, 0.9, 0.2, 0.8, 0.3])
    probabilities = np.stack([1 - pneumonia, pneumonia * 0.75, pneumonia * 0.25], axis=1)
    found = scores.metrics(probabilities, labels)
    everyone = np.ones(6)
    ill = labels > 0
    assert found["brier"](everyone) == pytest.approx(((pneumonia - ill) ** 2).mean())
    assert found["mcc"](everyone) == pytest.approx(np.corrcoef(pneumonia >= 0.5, ill)[0, 1])
    assert found["ece"](everyone) == pytest.approx(np.abs(pneumonia - ill).mean())  # one image in each bin
    assert found["ece"](np.array([1.0, 0, 1, 0, 0, 0])) == pytest.approx(0.1)


def test_an_interval_covers_patients_and_trainings() -> None:
    rng = np.random.default_rng(1)
    labels, patients = rng.integers(0, 3, 200), np.arange(200)
    good = np.eye(3)[labels] * 2 + rng.normal(0, 1, (200, 3))
    same = scores.intervals([good, good], labels, patients, replicates=100)["brier"]
    poor = scores.intervals([good, rng.normal(0, 1, (200, 3))], labels, patients, replicates=100)["brier"]
    assert same.low < same.value < same.high
    assert poor.high - poor.low > 2 * (same.high - same.low)
    assert same.value == pytest.approx(((1 - softmax(good, 1)[:, 0] - (labels > 0)) ** 2).mean())


def numbered(part: accuracy.Part, series: str) -> accuracy.Part:
    """Name the films as the data set does: its patients get the numbers from 3 on, in twos."""
    names = tuple(f"train/{series}{3 + 2 * patient}-0001.jpeg" for patient in part.films.patients.tolist())
    return replace(part, films=replace(part.films, files=names))


def test_blocks_follow_the_numbers_of_each_series_and_not_their_spelling() -> None:
    first, second = numbered(part(30, 1), "normal/IM-0"), numbered(part(60, 2), "normal/NORMAL2-IM-")
    owner = np.concatenate([first.films.patients, second.films.patients + 30])
    both = Films(first.films.files + second.films.files, ("",) * len(owner), np.zeros_like(owner), owner)
    expected = np.concatenate([np.repeat(np.arange(1, 7), 5), np.repeat(np.arange(1, 7), 10)])
    np.testing.assert_array_equal(order_out.ordered(both), expected)


def test_a_block_held_out_is_scored_by_a_head_that_never_saw_it() -> None:
    whole = numbered(part(240, 1), "normal/IM-")
    recipe = replace(RECIPE, steps=10)
    assert order_out.measure(whole, order_out.heads(recipe, None), draws=1)["auc_pneumonia"] > 0.95
    # Whoever is held out shows the class where the others show another one: only a head that saw them could know.
    turned = np.where((order_out.ordered(whole.films) == 1)[whole.films.patients, None], [1, 2, 0], [0, 1, 2])
    features = whole.features.copy()
    features[:, :, :3] = np.take_along_axis(features[:, :, :3], turned[:, None], axis=2)
    found = order_out.measure(replace(whole, features=features), order_out.heads(recipe, None), draws=1)
    assert found["block1_auc_pneumonia"] < 0.6
    assert found["block2_auc_pneumonia"] > 0.9
    assert found["auc_pneumonia"] == pytest.approx(np.mean([found[f"block{n}_auc_pneumonia"] for n in range(1, 7)]))


def test_what_a_rule_compares_counts_the_distance_between_two_normal_distributions() -> None:
    # Two distributions of width 1 whose means are 2 apart: AUC = Phi(sqrt 2) = 0.92135.
    assert order_out.detectability(0.92135, 0.5) == pytest.approx(2.0, abs=1e-3)
    assert order_out.detectability(0.995, 0.7) - order_out.detectability(0.985, 0.7) > 0.5
    assert order_out.detectability(0.995, 0.71) - order_out.detectability(0.995, 0.7) < 0.05


def test_last_stages_learn_from_what_leaves_the_cut() -> None:
    drawn = part(30, 4)
    shown = 3 * np.random.default_rng(5).normal(size=(3, 320, 7, 7)).astype(np.float32)
    images = shown[drawn.films.labels][:, None]
    whole = replace(drawn, features=images)
    said = last_stages.stages("block15", Recipe(10, 1.0, 1.0, 0.5, 0.9), None)(whole, whole)
    assert (said.argmax(1) == whole.films.labels).mean() > 0.9
    # What is evaluated is the mean of the last iterates, not the last one.
    mean, last = (
        last_stages.stages("block15", Recipe(2, 1.0, 1.0, 0.5, 0.0, averaged=share), None)(whole, whole)
        for share in (1.0, 0.5)
    )
    assert np.abs(mean).max() < 0.9 * np.abs(last).max()
