"""Whole networks under encryption, three processes on mTLS over loopback, one thread each, beside plain torch.

Run: ``python -m tests.bench.mpc --json FILE``. *Online* is from image to opened logits, *offline* all that a bundle
needs before, connections and dealing included; *plain* is the module itself in float32, one thread. Weights are random.
The hospital's memory is that of this process, torch and the module in the clear included.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from dicom_node.core import logs
from secure_infer.compile import compile_network
from secure_infer.networks import SmallCNN, resnet18
from tests.bench import figures
from tests.bench.inference import resident_mb, timed
from tests.secure_infer.small_network import publish_network
from tests.secure_infer.test_compile import images, trained
from tests.system.roles import Roles

#: Name, module, input shape, queries.
NETWORKS = (
    ("smallcnn_128", SmallCNN, (1, 128, 128), 50),
    ("resnet18_64", resnet18, (3, 64, 64), 20),
    ("resnet18_224", resnet18, (3, 224, 224), 7),
)


def measure(name: str, network: torch.nn.Module, roles: Roles, shape: tuple[int, int, int], queries: int) -> dict:
    engine = roles.engine(name, timeout_s=30.0)
    found: dict[str, float] = {}
    online, offline, plain, wrong = [], [], [], 0.0
    for number, image in enumerate(images(shape, queries + 1, seed=7)):
        sample = torch.from_numpy(image[None]).float()
        with torch.no_grad():
            expected, plain_ms = timed(lambda sample=sample: network(sample).numpy()[0])
        prepared, offline_ms = timed(engine._prepare)
        before = prepared.channel.sent + prepared.channel.received
        answer, online_ms = timed(lambda prepared=prepared, image=image: engine._query(prepared, image))
        if number == 0:  # brings the blinded weights, once; loops are compiled
            continue
        online.append(online_ms / 1e3)
        offline.append(offline_ms / 1e3)
        plain.append(plain_ms / 1e3)
        found[f"{name}_online_mb"] = (prepared.channel.sent + prepared.channel.received - before) / 1e6
        found[f"{name}_party_offline_mb"] = before / 1e6
        wrong = max(wrong, float(np.abs(answer.logits - expected).max()))
    engine.close()
    for kind, spans in (("online", online), ("offline", offline), ("plain", plain)):
        found[f"{name}_{kind}_s"] = float(np.median(spans))
    found[f"{name}_online_p95_s"] = float(np.quantile(online, 0.95))
    found[f"{name}_logit_error"] = wrong
    pids = {"party": roles.party.pid, "dealer": roles.dealer.pid, "hospital": os.getpid()}
    found |= {f"{name}_{role}_rss_mb": resident_mb(pid) for role, pid in pids.items()}
    found[f"{name}_rss_mb"] = max(resident_mb(pid) for pid in pids.values())
    return found


def run() -> dict[str, float]:
    torch.set_num_threads(1)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"  # for the two services
    found: dict[str, float] = {}
    for name, make, shape, queries in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            roles = Roles(Path(folder))
            network = trained(make(), shape)
            compiled = compile_network(network, images(shape))
            roles.cards[name] = publish_network(
                roles.models, compiled.program, compiled.weights, name.replace("_", "-")
            )
            try:
                roles.start()
                found |= measure(name, network, roles, shape, queries)
            finally:
                roles.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    logs.configure("bench", "warning")
    figures.write(arguments.json, run(), {})


if __name__ == "__main__":
    main()
