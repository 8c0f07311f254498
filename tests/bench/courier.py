"""Rounds of four stages between a coordinator and three hospitals over NVFlare's processes and mutual TLS, on loopback.

Run: ``python -m tests.bench.courier --json FILE``. Every stage brings each hospital a frame of 15 kB, whose agent sends
it back; 300 rounds follow each other without a pause. `courier_round_s` is their median. Resident sizes are taken after
the first 100 and after all of them: what grows in between grows for ever. `courier_update_s` is one stage of 46.8 MB
both ways, the update of 11.69 million parameters.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import figures
from tests.system.relays import Relays

HOSPITALS = ("north", "east", "south")
STAGES = 4
ROUNDS = 300
SETTLED = 100
FRAME = 15_000
UPDATE = 4 * 11_690_000


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def stage(relays: Relays, frame: bytes) -> None:
    """Bring everybody a frame; all must send it back."""
    assert relays.exchange(frame, 60.0) == dict.fromkeys(HOSPITALS, frame)


def sizes(relays: Relays) -> dict[str, float]:
    return {"server": resident_mb(relays.pid("coordinator")), "site": resident_mb(relays.pid("north"))}


def measure(relays: Relays, rounds: int = ROUNDS, settled: int = SETTLED, update: int = UPDATE) -> dict[str, float]:
    """Measure a consortium whose agents send every frame back."""
    frame, times, before = os.urandom(FRAME), [], sizes(relays)
    for done in range(rounds):
        if done == settled:
            before = sizes(relays)
        began = time.perf_counter()
        for _ in range(STAGES):
            stage(relays, frame)
        times.append(time.perf_counter() - began)
    found = {"courier_round_s": statistics.median(times), "courier_round_max_s": max(times)}
    for side, size in sizes(relays).items():
        found |= {f"courier_{side}_rss_mb": size, f"courier_{side}_growth_mb": size - before[side]}
    frame = os.urandom(update)
    began = time.perf_counter()
    stage(relays, frame)
    return found | {"courier_update_s": time.perf_counter() - began}


def run() -> dict[str, float]:
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        with Relays(Path(folder), HOSPITALS) as relays:
            relays.serve(dict.fromkeys(HOSPITALS, bytes))
            return {"courier_start_s": time.perf_counter() - began, **measure(relays)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    figures.write(parser.parse_args().json, run(), {})


if __name__ == "__main__":
    main()
