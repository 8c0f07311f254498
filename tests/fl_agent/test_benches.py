"""The benches of training run and give each figure that they promise, on data too small to say anything."""

from __future__ import annotations

import math

from tests.bench import dp


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


def test_rows_like_the_data_sets_hold_every_patient_once_in_weight() -> None:
    rows = dp.head_rows(50, 8)
    assert rows.count == 50
    totals = [float(rows.weights[rows.patients == patient].sum()) for patient in range(50)]
    assert all(math.isclose(total, 1.0, rel_tol=1e-5) for total in totals)
    assert rows.inputs.shape[0] > 100  # two views of each image
