"""A night's worth of queries in a row, by three processes on mTLS over loopback: does memory or a handle grow?

Run: ``python -m tests.bench.soak --json FILE [--queries N]``, or ``make campaign``. The hospital is this process. Each
role's resident memory and open file descriptors are read between queries; growth is the slope of a straight line
through the second half of the samples, so that what is loaded once does not count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from secure_infer.dealt import DealtEngine
from tests.bench import figures
from tests.secure_infer.small_model import publish
from tests.secure_infer.small_network import every_kind
from tests.system.roles import Roles

ROLES: Final = ("hospital", "party", "dealer")
#: Samples of one run.
SAMPLES: Final = 50


@dataclass(frozen=True)
class Sample:
    """One role after so many queries: resident memory in KiB, and open file descriptors."""

    queries: int
    rss_kib: float
    handles: int


@dataclass(frozen=True)
class Growth:
    """What a role takes more for each query, in the second half of a run."""

    rss_kib_per_query: float
    handles_per_query: float


def look(pid: int, queries: int) -> Sample:
    """Read a process's memory and handles."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(queries, pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def growth(samples: list[Sample]) -> Growth:
    """Fit a straight line to the second half."""
    half = samples[len(samples) // 2 :]
    x = [one.queries for one in half]
    rss, handles = (np.polyfit(x, y, 1)[0] for y in ([one.rss_kib for one in half], [one.handles for one in half]))
    return Growth(float(rss), float(handles))


@contextmanager
def services(folder: Path, prefetch: int = 2) -> Iterator[tuple[dict[str, int], DealtEngine, tuple[int, ...]]]:
    """Party, dealer and an engine for a small network; their process numbers, and the input's shape."""
    roles = Roles(folder, daily_quota=10**9)
    made = every_kind()
    card = publish(roles.models, made, version="network")
    try:
        roles.start()
        engine = roles.engine(card, prefetch=prefetch)
        pids = dict(zip(ROLES, (os.getpid(), roles.party.pid, roles.dealer.pid), strict=True))
        yield pids, engine, made.input_shape
        engine.close()
    finally:
        roles.stop()


def run(
    pids: dict[str, int], ask: Callable[[int], object], queries: int, samples: int = SAMPLES
) -> dict[str, list[Sample]]:
    """Ask so often, and look at these processes on the way."""
    found: dict[str, list[Sample]] = {role: [] for role in pids}
    every = max(1, queries // samples)
    for number in range(1, queries + 1):
        ask(number)
        if number % every == 0:
            for role, pid in pids.items():
                found[role].append(look(pid, number))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, services(Path(folder)) as (pids, engine, shape):
        images = np.random.default_rng(0).uniform(-1, 1, (16, *shape))
        started = time.perf_counter()
        found = run(pids, lambda number: engine.infer(images[number % 16]), arguments.queries)
        seconds = time.perf_counter() - started
    told = {"soak_queries": float(arguments.queries), "soak_seconds": round(seconds, 1)}
    for role, samples in found.items():
        grown = growth(samples)
        told[f"soak_{role}_rss_mb_first"] = round(samples[0].rss_kib / 1024, 1)
        told[f"soak_{role}_rss_mb_last"] = round(samples[-1].rss_kib / 1024, 1)
        told[f"soak_{role}_rss_kib_per_query"] = round(grown.rss_kib_per_query, 3)
        told[f"soak_{role}_handles_first"] = samples[0].handles
        told[f"soak_{role}_handles_last"] = samples[-1].handles
        told[f"soak_{role}_handles_per_query"] = round(grown.handles_per_query, 5)
    figures.write(arguments.json, told, {})
    for name, value in told.items():
        print(f"{name:<40} {value:g}")


if __name__ == "__main__":
    main()
