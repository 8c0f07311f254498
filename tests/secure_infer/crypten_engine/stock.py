"""One private convolution by CrypTen as it is shipped, and what the owner of the weights sees of it.

As a program, ``python -m tests.secure_infer.crypten_engine.stock FOLDER KEY`` is one of the three processes; its rank
stands in the environment. KEY is the seed of the trusted third party's own generator, 64 bits, and is used by it alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.bench.crypten_stock import PARTIES, import_crypten

SHAPE = (1, 1, 16, 16)


def run(folder: Path, image: np.ndarray, key: int) -> dict[str, np.ndarray]:
    """Let three processes compute; return the view of the party that owns the weights."""
    save_file({"image": np.ascontiguousarray(image, np.float32)}, folder / "image.safetensors")
    command = [sys.executable, "-m", "tests.secure_infer.crypten_engine.stock", str(folder), str(key)]
    processes = []
    for rank in range(PARTIES + 1):
        environment = os.environ | {
            "RANK": str(rank), "WORLD_SIZE": str(PARTIES), "RENDEZVOUS": f"file://{folder}/rendezvous",
            "DISTRIBUTED_BACKEND": "gloo", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    try:
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return load_file(folder / "view.safetensors")


def main(folder: Path, key: int) -> None:
    torch.set_num_threads(1)
    crypten = import_crypten()
    crypten.config.cfg.mpc.provider = "TTP"
    rank = int(os.environ["RANK"])
    if rank == PARTIES:
        torch.manual_seed(key)
        crypten.mpc.provider.TTPServer()
        return
    crypten.init()
    view: dict[str, np.ndarray] = {}
    if rank == 1:
        record(crypten, view)
    # Each party hands in what it owns, and for the rest the shape alone.
    image = torch.from_numpy(load_file(folder / "image.safetensors")["image"]) if rank == 0 else torch.zeros(SHAPE)
    weight = torch.full((1, 1, 3, 3), 0.5 if rank == 1 else 0.0)
    crypten.cryptensor(image, src=0).conv2d(crypten.cryptensor(weight, src=1))
    if rank == 1:
        save_file(view, folder / "view.safetensors")
    crypten.uninit()


def record(crypten: Any, view: dict[str, np.ndarray]) -> None:
    """Keep what this process knows anyway: its seed from the third party, and the first opening."""
    client = crypten.mpc.provider.ttp_provider.TTPClient.get()
    view["own_seed"] = np.array([client.generator.initial_seed()], np.uint64)
    communicator = crypten.communicator.get()
    open_to_both = communicator.all_reduce

    def recording(tensors: Any, **options: Any) -> Any:
        opened = open_to_both(tensors, **options)
        view.setdefault("opened", opened[0].numpy())
        return opened

    communicator.all_reduce = recording


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
