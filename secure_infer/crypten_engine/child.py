"""The CrypTen process: passes its self-test, then evaluates one query after the other for the service that started it.

As a program, ``python -m secure_infer.crypten_engine.child DESCRIPTOR`` speaks `pipe` on an inherited socket.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dicom_node.core.errors import IntegrityError, Unavailable, VeilRayError

from ..program import (
    INPUT,
    AdditionLayer,
    ConvolutionLayer,
    DenseLayer,
    GuardLayer,
    Program,
    ReluLayer,
    TruncationLayer,
    shapes_of,
    sources,
    tensor_shapes,
)
from ..protocol.layers import local
from ..protocol.messages import Vector
from ..protocol.prg import tuple_masks
from ..protocol.ring import Words
from . import library
from .pipe import Kind, Pipe
from .tuples import RING, encoded_corrections, requests_of

#: What the self-test must open: relu(2·(1, -1) + 1), summed.
KNOWN = 3.0
#: Longest wait of the self-test for its twin, seconds.
REHEARSAL_S = 60.0


class Model:
    """A program, and at party 1 its weights and biases: integers, as the program's scales give them."""

    def __init__(self, program: Program, rank: int, tensors: Mapping[str, Words]) -> None:
        self.program, self.rank = program, rank
        self.shapes = shapes_of(program)
        self.requests = requests_of(program)
        self._tensors = tensors
        self._empty = tensor_shapes(program)

    def part(self, name: str) -> Words:
        """Return this party's share of a private tensor: all of it at party 1, zero at the hospital."""
        return self._tensors[name] if self.rank else np.zeros(self._empty[name], np.uint64)

    def evaluate(self, share: Words) -> Vector:
        """Evaluate the program on shares within a `library.session`; return this party's share of what is opened."""
        found = {INPUT: share}
        for layer in self.program.layers:
            given = [found[one] for one in sources(layer)]
            if isinstance(layer, ConvolutionLayer | DenseLayer):
                value = self._weigh(layer, given[0])
            elif isinstance(layer, ReluLayer):
                value = relu(given[0])
                if layer.ceiling is not None:  # min(x, c) = x - relu(x - c)
                    ceiling = RING.encode(np.array(layer.ceiling), self.program.fraction_bits)
                    value = value - relu(value - ceiling if self.rank else value)
            elif isinstance(layer, TruncationLayer):
                value = given[0]  # a product is truncated at once
            else:
                if isinstance(layer, AdditionLayer):  # all tensors have one scale here
                    layer = layer.model_copy(update={"first_shift": 0, "second_shift": 0})  # noqa: PLW2901
                value = local(layer, given)
                if isinstance(layer, GuardLayer) and self.rank:
                    limits = RING.encode(np.array(layer.limits), self.program.fraction_bits)
                    value = value - limits[:, None, None]
            found[layer.name] = value
        opened = [found[one] for one in (self.program.output, self.program.guard) if one is not None]
        return RING.to_bytes(opened)

    def _weigh(self, layer: ConvolutionLayer | DenseLayer, share: Words) -> Words:
        weight, bias = (self.part(f"{layer.name}.{kind}") for kind in ("weight", "bias"))
        values = _shared(share[None])
        if isinstance(layer, ConvolutionLayer):
            options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
            product = values.conv2d(_shared(weight), **options)
        else:
            product = _shared(share.reshape(1, -1)).matmul(_shared(np.ascontiguousarray(weight.T)))
        product.share = product.share.reshape(1, *self.shapes[layer.name]) + library.tensor(bias)[:, None, None]
        found: Words = library.words(product.div_(1 << self.program.weight_fraction_bits).share)[0]
        return found


def relu(share: Words) -> Words:
    """Compare with zero and select, by CrypTen."""
    value = library.MPCTensor.from_shares(library.tensor(share[None]), precision=0)
    found: Words = library.words(value.relu().share)[0]
    return found


def _shared(share: Words) -> library.ArithmeticSharedTensor:
    return library.ArithmeticSharedTensor.from_shares(library.tensor(np.ascontiguousarray(share)), precision=0)


def evaluate(
    model: Model,
    exchange: Callable[[Vector], Vector],
    seeds: tuple[bytes, bytes],
    corrections: Sequence[Vector] | None,
    share: Words,
) -> Vector:
    """Run one query; return this party's share of what is opened to the hospital."""
    provider = library.Dealt(model.requests, tuple_masks(seeds[0]), corrections)
    with library.session(library.Communicator(model.rank, exchange), provider, seeds[1]):
        return model.evaluate(share)


def self_test() -> None:
    """Check streams, providers and the arithmetic of both parties on this machine.

    Raises
    ------
    IntegrityError
        This installation must not compute (``self-test``).
    """
    library.require_sound_streams()
    library.require_refusal()
    program, tensors = _known()
    found, *_ = rehearse(program, tensors, np.array([1.0, -1.0]).reshape(program.input_shape))
    if abs(found.item() - KNOWN) > 2.0 ** (2 - program.fraction_bits):  # a unit in the last place for each truncation
        raise IntegrityError("CrypTen computes a known product wrongly", code="self-test")


def rehearse(program: Program, tensors: Mapping[str, Words], image: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Play all three roles on this machine, with weights and biases as integers; return what is opened."""
    seeds = [os.urandom(32) for _ in range(3)]
    dealt = [one for _, one in encoded_corrections(program, *(tuple_masks(seed) for seed in seeds[:2]))]
    ours, theirs = socket.socketpair()
    twin = os.fork()  # CrypTen's state is global, so the other party is another process
    if not twin:
        status = 1
        try:
            pipe, share = Pipe(theirs, REHEARSAL_S), np.zeros(program.input_shape, np.uint64)
            output = evaluate(Model(program, 1, tensors), _exchange(pipe), (seeds[1], seeds[2]), dealt, share)
            pipe.send(Kind.OUTPUT, output)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    pipe = Pipe(ours, REHEARSAL_S)
    try:
        share = RING.encode(image, program.fraction_bits)
        output = evaluate(Model(program, 0, {}), _exchange(pipe), (seeds[0], seeds[2]), None, share)
        _, other = pipe.receive()
    finally:
        pipe.close()  # ends a twin that still waits
        os.waitpid(twin, 0)
    shapes = [shapes_of(program)[one] for one in (program.output, program.guard) if one is not None]
    pairs = zip(RING.split(output, shapes), RING.split(other, shapes), strict=True)
    return [RING.decode(mine + its, program.fraction_bits) for mine, its in pairs]


def _known() -> tuple[Program, dict[str, Words]]:
    program = Program(
        ring_bits=64,
        input_shape=(1, 1, 2),
        fraction_bits=16,
        weight_fraction_bits=26,
        input_bound=1.0,
        output_bound=8.0,
        output="sum",
        layers=(
            ConvolutionLayer(name="double", source=INPUT, out_channels=1, kernel=(1, 1)),
            ReluLayer(name="gate", source="double", shift=26),
            ConvolutionLayer(name="sum", source="gate", out_channels=1, kernel=(1, 2)),
        ),
    )
    tensors = {
        "double.weight": RING.encode(np.full((1, 1, 1, 1), 2.0), 26),
        "double.bias": RING.encode(np.array([1.0]), 42),
        "sum.weight": RING.encode(np.ones((1, 1, 1, 2)), 26),
        "sum.bias": RING.encode(np.array([0.0]), 42),
    }
    return program, tensors


def _exchange(pipe: Pipe) -> Callable[[Vector], Vector]:
    def call(values: Vector) -> Vector:
        pipe.send(Kind.MINE, values)
        kind, theirs = pipe.receive()
        if kind not in (Kind.PEERS, Kind.MINE):
            raise IntegrityError("the service answered out of order", code="crypten-process")
        return theirs

    return call


def _model(payload: bytes) -> Model:
    size = 8 + int.from_bytes(payload[:8], "big")
    head = json.loads(payload[8:size])
    program = Program.model_validate_json(json.dumps(head["program"]))
    names = tensor_shapes(program) if head["rank"] else {}
    parts = RING.split(payload[size:], list(names.values()))
    return Model(program, head["rank"], dict(zip(names, parts, strict=True)))


def serve(pipe: Pipe) -> None:
    """Evaluate queries until the service closes its end."""
    model: Model | None = None
    seeds, corrections = (b"", b""), list[bytes]()
    while True:
        kind, payload = pipe.receive()
        if kind is Kind.MODEL:
            model = _model(payload)
        elif kind is Kind.SEEDS:
            seeds, corrections = (payload[:32], payload[32:]), []
        elif kind is Kind.CORRECTIONS:
            corrections.append(payload)
        elif kind is Kind.RUN and model is not None:
            shape = model.program.input_shape
            share = np.zeros(shape, np.uint64) if model.rank else RING.from_bytes(payload, shape)
            given = corrections if model.rank else None
            pipe.send(Kind.OUTPUT, evaluate(model, _exchange(pipe), seeds, given, share))
            seeds, corrections = (b"", b""), []
        else:
            raise IntegrityError("the service asked out of order", code="crypten-process")


def main() -> int:
    """Pass the self-test, say so, and serve."""
    pipe = Pipe(socket.socket(fileno=int(sys.argv[1])), None)
    library.harden()
    torch.set_num_threads(1)
    try:
        self_test()
    except VeilRayError as error:
        pipe.send(Kind.FAILED)
        print(error, file=sys.stderr)  # noqa: T201 - a child's last words, in the service's log
        return error.exit_status
    pipe.send(Kind.HELLO)
    try:
        serve(pipe)
    except Unavailable:
        return 0  # the service is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
