"""The encrypted engine alone, three processes on mTLS over loopback, beside the plaintext engine in the same run.

Run: ``python -m tests.bench.inference --json FILE``. The program is that of a head of 1280 features, 7 x 7 positions
and 3 classes. *Online* is from features to the opened output, *offline* all that a bundle needs before, connections
included. *infer* is both as a worker sees them, in threads that never rest, so that bundles cannot be fetched ahead
fast enough.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dicom_node.core import logs
from secure_infer.engine import input_of
from tests.bench import figures
from tests.system.roles import MAP, Roles, features

QUERIES = 200
THREADS = 10


def timed(call: Callable[[], object]) -> tuple[object, float]:
    started = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - started)


def summary(name: str, milliseconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_median_ms": float(np.median(milliseconds)),
        f"{name}_p95_ms": float(np.quantile(milliseconds, 0.95)),
    }


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def run() -> tuple[dict[str, float], dict[str, object]]:
    from secure_infer.clear import PlaintextEngine  # torch, which a hospital of the bench does without

    found: dict[str, float] = {}
    given = features()
    with tempfile.TemporaryDirectory() as folder:
        roles = Roles(Path(folder), daily_quota=100_000)
        try:
            roles.start()
            plain = PlaintextEngine(MAP, roles.weights())
            reference = plain.infer(given)
            found |= summary("plaintext", [timed(lambda: plain.infer(given))[1] for _ in range(QUERIES)])
            engine = roles.engine()
            answer = engine.infer(given)  # brings the blinded weights, once
            found["largest_logit_error"] = float(np.abs(answer.logits - reference.logits).max())
            image = input_of(MAP, given)
            offline, online = [], []
            for _ in range(QUERIES):
                prepared, spent = timed(engine._prepare)
                offline.append(spent)
                online.append(timed(lambda prepared=prepared: engine._query(prepared, image))[1])
                found["party_bytes_per_query"] = prepared.channel.sent + prepared.channel.received
            found |= summary("offline", offline) | summary("online", online)
            with ThreadPoolExecutor(THREADS) as pool:
                ready = list(pool.map(lambda _: engine._prepare(), range(THREADS * 4)))
                spans = list(pool.map(lambda one: timed(lambda: engine._query(one, image))[1], ready))
            found |= summary(f"online_{THREADS}_threads", spans)
            engine.close()
            for prefetch in (0, 4):
                engine = roles.engine(prefetch=prefetch)
                with ThreadPoolExecutor(THREADS) as pool:
                    spans = list(
                        pool.map(lambda _, engine=engine: timed(lambda: engine.infer(given))[1], range(QUERIES))
                    )
                found |= summary(f"infer_{THREADS}_threads_prefetch_{prefetch}", spans)
                engine.close()
            found |= {f"{name}_rss_mb": resident_mb(getattr(roles, name).pid) for name in ("party", "dealer")}
        finally:
            roles.stop()
    return found, {"plaintext": {"median_ms": found["plaintext_median_ms"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    logs.configure("bench", "warning")
    found, peers = run()
    figures.write(arguments.json, found, peers)


if __name__ == "__main__":
    main()
