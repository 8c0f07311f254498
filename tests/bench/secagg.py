"""Secure sums of 11.69 million parameters for 3, 10, 30 and 100 hospitals, every client played in full.

Run: ``python -m tests.bench.secagg --json FILE``. Client and server times are processor seconds of one thread over all
five stages, from the float32 update to the shares and from the first frame to the sum (of which adding up the masked
inputs is `server_adds_s`); the client's is the median over the clients of a round. Upload is everything a client sends,
over the float32 update. Every sum is compared, bit by bit, with one taken in the open. Peer: Flower's SecAgg+
arithmetic, in an environment of its own: ``--flwr-python /path/to/python``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fl_agent.secagg.encode import encode
from fl_agent.secagg.frames import open_frame
from fl_agent.secagg.messages import MaskedInput
from fl_agent.secagg.stages import Stage
from tests.bench import figures
from tests.fl_agent.secagg.consortium import Consortium, folder

PARAMETERS = 11_690_000
#: Hospitals, bits of the ring, how many fall silent before they send their masked input.
ROUNDS = ((3, 32, 0), (10, 32, 0), (10, 20, 0), (10, 32, 3), (30, 32, 0), (30, 32, 9), (100, 32, 0))
REPEATS = {3: 5, 10: 3}


class Timed:
    """Processor seconds by name, and bytes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}

    def __call__(self, who: str, act: Callable[[], Any]) -> Any:
        began = time.process_time()
        done = act()
        self.seconds[who] = self.seconds.get(who, 0.0) + time.process_time() - began
        return done


def play(size: int, bits: int, dropped: int) -> dict[str, float]:
    """One round; a client's masked input goes to the server as it is made, so one at a time is held."""
    timed = Timed()
    with folder() as place:
        consortium = Consortium(Path(place), size, bits=bits, lengths=(PARAMETERS,))
        server, header = consortium.server, consortium.header
        # Updates repeat every five hospitals: 100 of them would take 4.7 GB.
        generator = np.random.default_rng(1)
        updates = [[generator.normal(0, 0.3, PARAMETERS).astype(np.float32)] for _ in range(min(size, 5))]
        silent = set(range(size - dropped + 1, size + 1))
        waiting = timed("server", server.start)
        downloaded: dict[int, int] = {}
        while server.stage is not Stage.DONE:
            following = []
            for user, frame in waiting:
                client = consortium.clients[user]
                downloaded[user] = downloaded.get(user, 0) + len(frame)
                sent = timed(f"client {user}", lambda client=client, frame=frame: client.handle(frame))
                if client.stage is Stage.INPUT:
                    if user in silent:
                        continue
                    values = updates[user % len(updates)]
                    sent = timed(f"client {user}", lambda client=client, values=values: client.contribute(values))
                for _, said in sent:
                    timed.bytes[f"client {user}"] = timed.bytes.get(f"client {user}", 0) + len(said)
                    kind = "server adds" if open_frame(said).kind is MaskedInput else "server"
                    following += timed(kind, lambda said=said: server.handle(said))
            waiting = following or (timed("server", server.proceed) if server.stage is not Stage.DONE else [])
        exact = np.zeros(PARAMETERS, dtype=np.uint32)
        words = np.empty(PARAMETERS, dtype=np.uint32)
        for user in sorted(server.survivors):
            encode(header, updates[user % len(updates)], words)
            exact += words
        np.testing.assert_array_equal(server.total(), exact & np.uint32((1 << bits) - 1))
        consortium.close()
    clients = [f"client {user}" for user in sorted(server.survivors)]
    return {
        "client_cpu_s": float(np.median([timed.seconds[one] for one in clients])),
        "server_s": timed.seconds["server"] + timed.seconds["server adds"],
        "server_adds_s": timed.seconds["server adds"],
        "upload_ratio": float(np.median([timed.bytes[one] for one in clients])) / (4 * PARAMETERS),
        "client_down_kb": max(downloaded.values()) / 1e3,
    }


def run() -> dict[str, float]:
    found: dict[str, float] = {"parameters": PARAMETERS}
    for size, bits, dropped in ROUNDS:
        played = [play(size, bits, dropped) for _ in range(REPEATS.get(size, 1))]
        name = f"secagg_n{size}" + (f"_{bits}bit" if bits != 32 else "") + (f"_drop{dropped}" if dropped else "")
        for key in played[0]:
            # A smaller ring is named for its one purpose: secagg_n10_20bit_ratio.
            short = key.removeprefix("upload_") if bits != 32 else key
            found[f"{name}_{short}"] = float(np.median([one[key] for one in played]))
        print(name, {key: round(value, 4) for key, value in found.items() if key.startswith(f"{name}_")}, flush=True)
    return found


def flower(python: Path | None, size: int = 10) -> dict[str, Any]:
    """The same for Flower's SecAgg+, which needs an environment of its own."""
    if python is None:
        return {"skipped": "--flwr-python names no interpreter of an environment with flwr, which is no dependency"}
    script = Path(__file__).with_name("flower_secagg.py")
    said = subprocess.run([python, script, str(PARAMETERS), str(size)], check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(said.stdout)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--flwr-python", type=Path, help="interpreter of an environment in which flwr is installed")
    arguments = parser.parse_args()
    figures.write(arguments.json, run(), {"flower_secagg_plus_n10": flower(arguments.flwr_python)})


if __name__ == "__main__":
    main()
