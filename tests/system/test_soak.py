"""Six hundred queries in a row leave no memory, no object and no handle behind, and a leak would be seen."""

from __future__ import annotations

import mmap
import socket

import numpy as np
import pytest

from tests.bench.soak import Samples, run, services
from tests.system import holdings

QUERIES, LOOKS = 600, 8
#: Less than the least that can be kept for a query: one object, or an array; a connection; pages of a mapping. Above
#: what caches of the interpreter still take in the first few hundred queries.
KEPT = {"objects": 0.9, "heap_kib": 2.0, "handles": 0.1, "rss_kib": 20.0}


def leaks(samples: Samples) -> dict[str, float]:
    return {name: samples.growth[name] for name, most in KEPT.items() if samples.growth[name] > most}


@pytest.mark.campaign
def test_600_queries_in_a_row_leave_nothing_behind_at_any_of_the_three(tmp_path):
    with services(tmp_path) as (looks, engine, shape):
        images = np.random.default_rng(0).uniform(-1, 1, (4, *shape))
        found = run(looks, lambda number: engine.infer(images[number % 4]), QUERIES, LOOKS)
    assert {role: leaks(samples) for role, samples in found.items()} == {role: {} for role in looks}
    assert all((samples.held > 0).any(axis=0).all() for samples in found.values())


def test_an_identifier_that_is_kept_for_each_query_is_seen():
    kept: list[bytes] = []
    found = run({"this": holdings.take}, lambda number: kept.append(number.to_bytes(16, "big")), QUERIES, LOOKS)
    assert set(leaks(found["this"])) == {"objects"}


def test_an_array_a_connection_and_a_mapping_that_are_kept_are_seen():
    kept: list[tuple[np.ndarray, socket.socket, mmap.mmap]] = []

    def keep(_: int) -> None:
        # Pages of its own: a large process would serve an array from memory that it has freed.
        kept.append((np.ones(512), socket.socket(), mmap.mmap(-1, 60 << 10)))
        kept[-1][2].write(bytes(60 << 10))

    found = run({"this": holdings.take}, keep, QUERIES, LOOKS)
    for _, connection, _ in kept:
        connection.close()
    assert set(leaks(found["this"])) == set(KEPT)
