"""A night's worth of queries in a row, by three processes on mTLS over loopback: does memory or a handle grow?

Run: ``python -m tests.bench.soak --json FILE [--queries N]``, or ``make campaign``. The hospital is this process. What
each role holds is read between queries; growth is the slope of a straight line through the second half of the samples,
so that what is loaded once does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secure_infer.dealt import DealtEngine
from tests.bench import figures
from tests.secure_infer.small_model import publish
from tests.secure_infer.small_network import every_kind
from tests.system import holdings
from tests.system.holdings import Holdings
from tests.system.roles import Roles, wait_for_bundles

#: Looks at each role in one run.
SAMPLES: Final = 40
NAMES: Final = tuple(one.name for one in fields(Holdings))
Look = Callable[[], Holdings]


@dataclass(frozen=True)
class Samples:
    """What one role held, look after look.

    Attributes
    ----------
    asked : ndarray, shape (looks,)
        Queries so far.
    held : ndarray, shape (looks, len(NAMES))
        The fields of `Holdings`. The arrays are made beforehand: a list that grows would count as the hospital's.
    """

    asked: NDArray[np.float64]
    held: NDArray[np.float64]

    @property
    def growth(self) -> dict[str, float]:
        """Fit a straight line to the second half: what the role takes more of everything for each query."""
        half = slice(len(self.asked) // 2, None)
        return dict(zip(NAMES, np.polyfit(self.asked[half], self.held[half], 1)[0].tolist(), strict=True))


@contextmanager
def services(folder: Path, prefetch: int = 2) -> Iterator[tuple[dict[str, Look], DealtEngine, tuple[int, ...]]]:
    """Party, dealer and an engine for a small network; how to look at each of the three, and the input's shape."""
    roles = Roles(folder, daily_quota=10**9)
    made = every_kind()
    card = publish(roles.models, made, version="network")
    try:
        roles.start()
        engine = roles.engine(card, prefetch=prefetch)

        def hospital() -> Holdings:
            wait_for_bundles(engine, prefetch)  # all three at rest: what is under way is not kept
            return holdings.take()

        looks: dict[str, Look] = {
            "hospital": hospital,
            "party": lambda: roles.holdings("party"),
            "dealer": lambda: roles.holdings("dealer"),
        }
        yield looks, engine, made.input_shape
        engine.close()
    finally:
        roles.stop()


def run(
    looks: Mapping[str, Look], ask: Callable[[int], object], queries: int, samples: int = SAMPLES
) -> dict[str, Samples]:
    """Ask so often, and look at each process on the way."""
    asked = np.linspace(0, queries, min(samples, queries) + 1).round()[1:]
    found = {role: Samples(asked, np.zeros((len(asked), len(NAMES)))) for role in looks}
    number = 0
    for at, until in enumerate(asked):
        while number < until:
            number += 1
            ask(number)
        for role, look in looks.items():
            found[role].held[at] = astuple(look())
    return found


def told(found: Mapping[str, Samples]) -> dict[str, float]:
    """Name the figures of a run: of each role and holding the first, the last and what it grows for each query."""
    named: dict[str, float] = {}
    for role, samples in found.items():
        for name, first, last in zip(NAMES, samples.held[0].tolist(), samples.held[-1].tolist(), strict=True):
            named[f"soak_{role}_{name}_first"] = round(first, 1)
            named[f"soak_{role}_{name}_last"] = round(last, 1)
            named[f"soak_{role}_{name}_per_query"] = round(samples.growth[name], 4)
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, services(Path(folder)) as (looks, engine, shape):
        images = np.random.default_rng(0).uniform(-1, 1, (16, *shape))
        started = time.perf_counter()
        found = run(looks, lambda number: engine.infer(images[number % 16]), arguments.queries)
        seconds = time.perf_counter() - started
    named = {"soak_queries": float(arguments.queries), "soak_seconds": round(seconds, 1), **told(found)}
    figures.write(arguments.json, named, {})
    for name, value in named.items():
        print(f"{name:<40} {value:g}")


if __name__ == "__main__":
    main()
