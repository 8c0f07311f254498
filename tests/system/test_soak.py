"""A hundred and fifty queries in a row leave no memory and no handle behind, and a leak would be seen."""

from __future__ import annotations

import mmap
import os
import socket

import numpy as np
import pytest

from tests.bench.soak import Growth, Sample, growth, run, services

#: Above what an allocator moves to and fro, below what a query holds: a connection is a handle, a bundle many KiB.
KEPT = Growth(rss_kib_per_query=20.0, handles_per_query=0.1)


def leaks(samples: list[Sample]) -> bool:
    found = growth(samples)
    return found.rss_kib_per_query > KEPT.rss_kib_per_query or found.handles_per_query > KEPT.handles_per_query


def test_150_queries_in_a_row_leave_nothing_behind_at_any_of_the_three(tmp_path):
    with services(tmp_path) as (pids, engine, shape):
        images = np.random.default_rng(0).uniform(-1, 1, (4, *shape))
        found = run(pids, lambda number: engine.infer(images[number % 4]), 150)
    assert {role: growth(samples) for role, samples in found.items() if leaks(samples)} == {}
    assert {len(samples) for samples in found.values()} == {50}


@pytest.mark.parametrize("what", ["memory", "handles"])
def test_what_is_kept_for_each_query_is_seen(what):
    kept: list[object] = []

    def keep(_: int) -> None:
        # Pages of its own: a large process would serve an array from memory that it has freed.
        kept.append(mmap.mmap(-1, 60 << 10) if what == "memory" else socket.socket())
        if isinstance(kept[-1], mmap.mmap):
            kept[-1].write(bytes(60 << 10))

    found = run({"this": os.getpid()}, keep, 150)
    for one in kept:
        if isinstance(one, socket.socket):
            one.close()
    assert leaks(found["this"])
