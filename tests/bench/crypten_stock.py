"""Stock CrypTen 0.4.1 (Knott et al. 2021) as a baseline: two parties and the trusted third party, one thread each.

Three real processes over gloo on loopback. The module is walked by torch.fx, BatchNorm folded, into `crypten.nn`
modules; neither ONNX nor pickle of ours. The weights are party 1's, the image is party 0's, and party 0 alone opens the
logits. A query's time is from the plain image to the plain logits at party 0; sharing the weights is not in it.

Run: ``python -m tests.bench.crypten_stock smallcnn_128 --runs 5``, or call `measure` with any module that is made of
the kinds in `_module`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import operator
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from secure_infer import networks
from secure_infer.networks import SmallCNN, resnet18

PARTIES = 2
ROLES = ("hospital", "owner", "dealer")


def _with_max_pooling() -> nn.Module:
    network = resnet18()
    network.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    return network


#: Name, module, input shape.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "smallcnn_128": (SmallCNN, (1, 128, 128)),
    "resnet18_64": (resnet18, (3, 64, 64)),
    "resnet18_224": (resnet18, (3, 224, 224)),
    "resnet18_224_max": (_with_max_pooling, (3, 224, 224)),
}


@dataclass(frozen=True)
class Measured:
    """What one network costs.

    Attributes
    ----------
    seconds : list of float
        Of each query, the first one (which warms up) left out.
    bytes : int
        Sent between the three processes for one query, as CrypTen counts them.
    rounds : int
        Communication calls of party 0 for one query.
    logits : list of float
        Of the last query.
    rss_mb : float
        Largest resident memory of any of the three processes.
    """

    seconds: list[float]
    bytes: int
    rounds: int
    logits: list[float]
    rss_mb: float


def measure(network: nn.Module, image: np.ndarray, runs: int, timeout_s: float = 900.0) -> Measured:
    """Evaluate a module on one image under stock CrypTen.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode.
    image : ndarray, shape (channels, rows, columns)
    runs : int
        Queries that are timed.

    Raises
    ------
    ValueError
        The module holds what `crypten.nn` does not have.
    RuntimeError
        A process failed; its last words are in the message.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps, tensors = walk(network)
        (folder / "steps.json").write_text(json.dumps(steps))
        save_file(tensors, folder / "weights.safetensors")
        save_file({"image": np.ascontiguousarray(image[None], np.float32)}, folder / "image.safetensors")
        logs = [folder / f"{role}.log" for role in ROLES]
        processes = [_start(folder, rank, runs, log) for rank, log in enumerate(logs)]
        try:
            deadline = time.monotonic() + timeout_s
            for process, log in zip(processes, logs, strict=True):
                if process.wait(max(1.0, deadline - time.monotonic())):
                    raise RuntimeError(f"{log.stem} of stock CrypTen failed:\n{log.read_text()[-2000:]}")
        finally:
            for process in processes:
                process.kill()
                process.wait()
        found = json.loads((folder / f"{ROLES[0]}.json").read_text())
        rss = max(json.loads((folder / f"{role}.json").read_text())["rss_mb"] for role in ROLES)
        return Measured(**found | {"rss_mb": rss})


def _start(folder: Path, rank: int, runs: int, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(PARTIES),
        "RENDEZVOUS": f"file://{folder}/rendezvous",
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.bench.crypten_stock", "--role", str(folder), "--runs", str(runs)]
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment)


def walk(network: nn.Module) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """List a network's layers with their inputs, and its tensors by layer."""
    traced = fuse(networks.plain(network.eval()))  # folds BatchNorm
    steps: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    for node in traced.graph.nodes:
        given = [one.name for one in node.all_input_nodes]
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op in ("placeholder", "output"):
            step: dict[str, Any] = {"kind": node.op}
        elif module is not None:
            step = _module(node, module)
            tensors |= {f"{node.name}.{name}": one.detach().numpy() for name, one in module.named_parameters()}
        else:
            step = _function(node)
        steps.append({"name": node.name, "inputs": given} | step)
    return steps, tensors


def _module(node: fx.Node, module: nn.Module) -> dict[str, Any]:
    """Name the `crypten.nn` class of a module and the arguments that make it."""
    if isinstance(module, nn.Conv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
        return {"kind": "Conv2d", "bias": module.bias is not None} | {name: getattr(module, name) for name in names}
    if isinstance(module, nn.Linear):
        sizes = {"in_features": module.in_features, "out_features": module.out_features}
        return {"kind": "Linear", "bias": module.bias is not None} | sizes
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        kind = type(module).__name__
        return {"kind": kind, "kernel_size": module.kernel_size, "stride": module.stride, "padding": module.padding}
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return {"kind": "GlobalAveragePool"}
    if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Flatten):
        return {"kind": type(module).__name__}
    if isinstance(module, nn.Dropout | nn.Identity):
        return {"kind": "Identity"}
    raise ValueError(f"{node.name}: {module} has no counterpart in crypten.nn")


def _function(node: fx.Node) -> dict[str, Any]:
    if node.target in (operator.add, operator.iadd, torch.add) and len(node.all_input_nodes) == PARTIES:
        return {"kind": "Add"}
    if node.target in (torch.flatten, "flatten") and node.args[1:] == (1,):
        return {"kind": "Flatten"}
    if node.target in (torch.relu, nn.functional.relu, "relu"):
        return {"kind": "ReLU"}
    if node.target in (nn.functional.relu6,):
        return {"kind": "ReLU6"}
    raise ValueError(f"{node.name}: {node.target} has no counterpart in crypten.nn")


def _crypten() -> Any:
    """Import CrypTen, which looks for a module of torch where torch 2.9 no longer has it."""
    moved = importlib.import_module("torch.onnx._internal.torchscript_exporter.registration")
    sys.modules.setdefault("torch.onnx._internal.registration", moved)
    return importlib.import_module("crypten")


def _build(crypten: Any, steps: list[dict[str, Any]], tensors: dict[str, np.ndarray] | None) -> Any:
    """Make the graph of `crypten.nn` modules; a party without the tensors gets zeros."""
    first, last = steps[0]["name"], steps[-1]["inputs"][0]
    graph = crypten.nn.Graph(first, last)
    names = {first: first}
    for step in steps[1:-1]:
        given = [names[one] for one in step["inputs"]]
        if step["kind"] == "Identity":
            names[step["name"]] = given[0]
            continue
        names[step["name"]] = step["name"]
        arguments = {key: _tuple(value) for key, value in step.items() if key not in ("name", "inputs", "kind")}
        module = getattr(crypten.nn, step["kind"])(**arguments)
        for name, own in list(module.named_parameters()):
            value = own.data.zero_() if tensors is None else torch.from_numpy(tensors[f"{step['name']}.{name}"])
            module.set_parameter(name, torch.nn.Parameter(value))
        graph.add_module(step["name"], module, given)
    graph.output_names = [names[last]]
    return graph.eval()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _serve(folder: Path, runs: int) -> None:
    """Be one of the three processes; its rank stands in the environment."""
    torch.set_num_threads(1)
    crypten = _crypten()
    from crypten.config import cfg

    cfg.mpc.provider = "TTP"
    cfg.communicator.verbose = True  # counts bytes and rounds
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {}
    if rank == PARTIES:
        crypten.mpc.provider.TTPServer()
    else:
        crypten.init()
        found = _query(crypten, folder, rank, runs)
        crypten.uninit()
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / f"{ROLES[rank]}.json").write_text(json.dumps(found))


def _query(crypten: Any, folder: Path, rank: int, runs: int) -> dict[str, Any]:
    steps = json.loads((folder / "steps.json").read_text())
    weights = load_file(folder / "weights.safetensors") if rank == 1 else None
    network = _build(crypten, steps, weights)
    network.encrypt(src=1)
    image = torch.from_numpy(load_file(folder / "image.safetensors")["image"])
    if rank != 0:
        image = torch.zeros_like(image)
    communicator = crypten.communicator.get()
    seconds, logits = [], None
    with crypten.no_grad():
        for _ in range(runs + 1):
            communicator.barrier()
            communicator.reset_communication_stats()
            started = time.perf_counter()
            logits = network(crypten.cryptensor(image, src=0)).get_plain_text(dst=0)
            seconds.append(time.perf_counter() - started)
    if rank != 0 or logits is None:
        return {}
    counted = communicator.get_communication_stats()
    spent = {"bytes": round(counted["bytes"]), "rounds": counted["rounds"]}
    return {"seconds": seconds[1:], "logits": logits.reshape(-1).tolist()} | spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", choices=NETWORKS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--role", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role is not None:
        _serve(arguments.role, arguments.runs)
        return
    if arguments.network is None:
        parser.error("name a network")
    torch.manual_seed(0)
    make, shape = NETWORKS[arguments.network]
    network, image = make().eval(), np.random.default_rng(7).uniform(0, 1, shape)
    with torch.no_grad():
        plain = network(torch.from_numpy(image[None]).float()).numpy()[0]
    found = measure(network, image, arguments.runs)
    error = float(np.abs(np.array(found.logits) - plain).max())
    print(json.dumps(asdict(found) | {"logit_error": error, "median_s": float(np.median(found.seconds))}, indent=2))


if __name__ == "__main__":
    main()
