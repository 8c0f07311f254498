"""Stock CrypTen 0.4.1 (Knott et al. 2021) as a baseline: two parties and the trusted third party, one thread each.

Three real processes over gloo on loopback. The module is walked by torch.fx, BatchNorm folded, into `crypten.nn`
modules; neither ONNX nor pickle of ours. The weights are party 1's, the image is party 0's, and party 0 alone opens the
logits. A query's time is from the plain image to the plain logits at party 0; sharing the weights is not in it.

Run: ``python -m tests.bench.crypten_stock smallcnn_128 --runs 5``, or make a `Stock` of any module that is made of
the kinds in `_module`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import operator
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from secure_infer import networks
from secure_infer.networks import SmallCNN, resnet18
from tests.bench.children import Child, serve
from tests.bench.inference import resident_mb

PARTIES = 2
ROLES = ("hospital", "owner", "dealer")
IMAGE = "image.safetensors"


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


class Stock:
    """The three processes of stock CrypTen, ready for queries on one network.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode.
    shape : tuple of int
        Of an image without its batch.
    timeout_s : float
        For the start.

    Raises
    ------
    ValueError
        The module holds what `crypten.nn` does not have.
    RuntimeError
        A process failed; its last words are in the message.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], timeout_s: float = 300.0) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        steps, tensors = walk(network)
        (folder / "steps.json").write_text(json.dumps({"shape": shape, "steps": steps}))
        save_file(tensors, folder / "weights.safetensors")
        self._children: list[Child] = []
        try:
            for rank in range(len(ROLES)):
                self._children.append(_start(folder, rank))
            self._children[0].answer(timeout_s)
        except BaseException:
            self.close()
            raise

    def query(self, image: np.ndarray, timeout_s: float = 300.0) -> dict[str, Any]:
        """Evaluate one image.

        Returns
        -------
        dict
            ``seconds`` from image to logits at party 0, ``logits``, and for this query the ``bytes`` that the three
            processes sent, as CrypTen counts them, and the communication ``rounds`` of party 0.
        """
        save_file({"image": np.ascontiguousarray(image[None], np.float32)}, Path(self._folder.name) / IMAGE)
        try:
            return self._children[0].ask({}, timeout_s)
        except RuntimeError as error:  # most often because another one failed
            raise RuntimeError("\n".join([str(error), *(one.last_words() for one in self._children[1:])])) from error

    @property
    def pids(self) -> list[int]:
        """Numbers of the three processes."""
        return [one.pid for one in self._children]

    def rss_mb(self) -> float:
        """Return the largest memory that any of the three processes ever held."""
        return max(map(resident_mb, self.pids))

    def close(self) -> None:
        """End the processes; harmless when they have ended already."""
        for one in self._children:
            one.close()
        self._children = []
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start(folder: Path, rank: int) -> Child:
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(PARTIES),
        "RENDEZVOUS": f"file://{folder}/rendezvous",
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = ["-m", "tests.bench.crypten_stock", "--role", str(folder)]
    return Child(command, folder / f"crypten-{ROLES[rank]}.log", environment)


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


def import_crypten() -> Any:
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


def _serve(folder: Path) -> None:
    """Be one of the three processes until it is ended; its rank stands in the environment."""
    torch.set_num_threads(1)
    crypten = import_crypten()
    from crypten.config import cfg

    cfg.mpc.provider = "TTP"
    cfg.communicator.verbose = True  # counts bytes and rounds
    rank = int(os.environ["RANK"])
    if rank == PARTIES:
        crypten.mpc.provider.TTPServer()
        return
    crypten.init()
    described = json.loads((folder / "steps.json").read_text())
    weights = load_file(folder / "weights.safetensors") if rank == 1 else None
    network = _build(crypten, described["steps"], weights)
    network.encrypt(src=1)
    if rank == 0:
        serve(lambda _: _query(crypten, network, torch.from_numpy(load_file(folder / IMAGE)["image"])))
    while rank == 1:
        _query(crypten, network, torch.zeros(1, *described["shape"]))


def _query(crypten: Any, network: Any, image: torch.Tensor) -> dict[str, Any]:
    """Take part in one query; both parties begin together."""
    communicator = crypten.communicator.get()
    communicator.barrier()
    communicator.reset_communication_stats()
    started = time.perf_counter()
    with crypten.no_grad():
        logits = network(crypten.cryptensor(image, src=0)).get_plain_text(dst=0)
    seconds = time.perf_counter() - started
    if logits is None:  # at party 1
        return {}
    counted = communicator.get_communication_stats()
    spent = {"bytes": round(counted["bytes"]), "rounds": counted["rounds"]}
    return {"seconds": seconds, "logits": logits.reshape(-1).tolist()} | spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", choices=NETWORKS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--role", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role is not None:
        _serve(arguments.role)
        return
    if arguments.network is None:
        parser.error("name a network")
    torch.manual_seed(0)
    make, shape = NETWORKS[arguments.network]
    network, image = make().eval(), np.random.default_rng(7).uniform(0, 1, shape)
    with torch.no_grad():
        plain = network(torch.from_numpy(image[None]).float()).numpy()[0]
    with Stock(network, shape) as stock:
        found = [stock.query(image) for _ in range(arguments.runs + 1)][1:]  # the first warms up
        median = float(np.median([one["seconds"] for one in found]))
        error = float(np.abs(np.array(found[-1]["logits"]) - plain).max())
        print(json.dumps(found[-1] | {"median_s": median, "logit_error": error, "rss_mb": stock.rss_mb()}, indent=2))


if __name__ == "__main__":
    main()
