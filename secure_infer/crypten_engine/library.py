"""The one door of CrypTen 0.4.1: what replaces its generators, transport, dealer and truncation, and the self-test.

Of CrypTen stay the sharing, Beaver's protocol, the conversion to binary shares and the comparison. Only a process that
does nothing else may import this module: CrypTen's state is global.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# CrypTen looks for it where torch had it before 2.9.
_moved = importlib.import_module("torch.onnx._internal.torchscript_exporter.registration")
sys.modules.setdefault("torch.onnx._internal.registration", _moved)

import crypten  # noqa: E402 - after the line above
from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402

from dicom_node.core.errors import ConfigError, IntegrityError  # noqa: E402

from ..protocol.messages import Label, Vector  # noqa: E402
from ..protocol.prg import Prg, zero_sharing  # noqa: E402
from ..protocol.ring import Words  # noqa: E402
from .tuples import OFFSET, RING, Request, half, truncated  # noqa: E402

CPU = torch.device("cpu")
PROVIDER = "DEALT"
#: Beyond the number of draws of any program.
FAR = 1 << 23


class Stream:
    """Uniform ring elements in place of a `torch.Generator`, whose key has 32 bits whatever its seed.

    Parameters
    ----------
    prg : Prg
        AES-128 in counter mode.
    first : int
        Number of the first stream that is drawn from; each draw takes the next one.
    """

    def __init__(self, prg: Prg, first: int = 0) -> None:
        self._prg = prg
        self._drawn = first

    @classmethod
    def of(cls, seed: int) -> Stream:
        """Make a stream from a seed of 256 bits, all of which count."""
        return cls(zero_sharing(seed.to_bytes(32, "big")))

    def draw(self, size: tuple[int, ...]) -> torch.Tensor:
        """Return elements that no earlier call returned."""
        words = self._prg.words(Label.ZERO_SHARING, self._drawn, tuple(size), RING)
        self._drawn += 1
        return tensor(words)


def tensor(words: Words) -> torch.Tensor:
    """Give ring elements as CrypTen holds them: signed, and its own to change."""
    return torch.from_numpy(np.require(words, requirements="W").view("i8"))


def words(share: torch.Tensor) -> Words:
    """View a share as ring elements."""
    found: Words = share.contiguous().numpy().view("u8")
    return found


def ring_elements(size: Any, ring_size: int = 2**64, generator: Any = None, **_: Any) -> torch.Tensor:
    """Stand in for `crypten.common.rng.generate_random_ring_element`; only a `Stream` may feed it."""
    chosen = crypten.generators["local"][CPU] if generator is None else generator
    if not isinstance(chosen, Stream) or ring_size != 2**64:
        raise IntegrityError("CrypTen asked for a generator that is not ours", code="self-test")
    return chosen.draw(tuple(size))


def random_bits(size: Any, bitlength: int | None = None, generator: Any = None, **_: Any) -> torch.Tensor:
    """Stand in for `crypten.common.rng.generate_kbit_random_tensor`."""
    found = ring_elements(size, generator=generator)
    return found if bitlength in (None, 64) else found & (2**bitlength - 1)


class Dealt(crypten.mpc.provider.provider.TupleProvider):  # type: ignore[misc]  # CrypTen is not typed
    """Hands out tuples that were dealt ahead, and only in the order that the public program gives.

    Parameters
    ----------
    requests : list of Request
    prg : Prg
        Expands this party's halves.
    corrections : list of bytes, optional
        Of each request, at party 1.
    """

    NAME = PROVIDER

    def __init__(self, requests: list[Request], prg: Prg, corrections: Sequence[Vector] | None = None) -> None:
        super().__init__()
        self._requests = iter(requests)
        self._prg = prg
        self._corrections = None if corrections is None else iter(corrections)

    def _next(self, kind: str, *shapes: Any, shift: int = 0) -> list[Words]:
        request = next(self._requests, None)
        asked = (kind, *(tuple(one) for one in shapes), shift)
        if request is None or asked != (request.kind, request.first, request.second, request.shift):
            raise IntegrityError("CrypTen asked for another tuple than the program's", code="tuple-order")
        corrected = None if self._corrections is None else next(self._corrections)
        return half(request, self._prg, corrected)

    def generate_additive_triple(self, size0: Any, size1: Any, op: str, device: Any = None, **_: Any) -> Any:
        """Return a, b and their product under `op`."""
        dealt = self._next(op, size0, size1)
        return tuple(ArithmeticSharedTensor.from_shares(one, precision=0) for one in map(tensor, dealt))

    def generate_binary_triple(self, size0: Any, size1: Any, device: Any = None) -> Any:
        """Return a, b and a & b."""
        return tuple(BinarySharedTensor.from_shares(tensor(one)) for one in self._next("and", size0, size1))

    def B2A_rng(self, size: Any, device: Any = None) -> Any:  # noqa: N802 - CrypTen's name
        """Return one bit, shared by sum and by xor."""
        bit, total = map(tensor, self._next("bit", size, size))
        return ArithmeticSharedTensor.from_shares(total, precision=0), BinarySharedTensor.from_shares(bit)

    def truncation(self, size: Any, shift: int) -> list[Words]:
        """Return shares of R, R >> shift, and R's highest bit times 2^(64 - shift)."""
        return self._next("truncation", size, size, shift=shift)


class Communicator(crypten.communicator.Communicator):  # type: ignore[misc]  # CrypTen is not typed
    """Two parties over a call that exchanges bytes; whatever this engine does not need is refused by the base class.

    Parameters
    ----------
    rank : int
        0 is the hospital, 1 the owner of the weights.
    exchange : callable
        Gives the peer this party's bytes and returns the peer's, as many.
    """

    def __init__(self, rank: int, exchange: Callable[[Vector], Vector]) -> None:
        self._rank = rank
        self._exchange = exchange

    def get_rank(self) -> int:
        """Return which party this is."""
        return self._rank

    def get_world_size(self) -> int:
        """Return the number of parties."""
        return 2

    def all_reduce(self, input: Any, op: Any = torch.distributed.ReduceOp.SUM, batched: bool = False) -> Any:  # noqa: A002
        """Open tensors to both parties by sum or by xor."""
        given = input if batched else [input]
        theirs = self._exchange(RING.to_bytes([words(one) for one in given]))
        found = []
        for ours, other in zip(given, RING.split(theirs, [tuple(one.shape) for one in given]), strict=True):
            xor = op == torch.distributed.ReduceOp.BXOR
            found.append(ours ^ tensor(other) if xor else ours + tensor(other))
        return found if batched else found[0]


def truncate(share: Any, divisor: int) -> Any:
    """Stand in for `ArithmeticSharedTensor.div_`, which is wrong by 2^(64 - t) now and then; see `tuples.truncated`."""
    shift = int(divisor).bit_length() - 1
    if divisor != 1 << shift or not shift:
        raise IntegrityError("CrypTen divides by something else than a power of two", code="self-test")
    dealt = current_provider().truncation(share.size(), shift)
    communicator = crypten.communicator.get()
    first = communicator.get_rank() == 0
    opened = communicator.all_reduce(share.share + tensor(dealt[0]) + (OFFSET if first else 0))
    share.share = tensor(truncated(words(opened), dealt, shift, first=first))
    return share


_current: list[Dealt] = []


def current_provider() -> Dealt:
    """Stand in for `crypten.mpc.get_default_provider`.

    Raises
    ------
    ConfigError
        Another provider is configured (``tuple-provider``): TFP gives the hospital all masks, and TTP's server has
        32-bit generators and must be asked during the query.
    """
    name = crypten.config.cfg.mpc.provider
    if name != PROVIDER or not _current:
        raise ConfigError(f"CrypTen's provider {name} is refused: tuples are dealt ahead", code="tuple-provider")
    return _current[-1]


def harden() -> None:
    """Replace, once and for this process, what CrypTen must not do itself."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    crypten.set_grad_enabled(False)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "crypten":
            for old, new in (
                ("generate_random_ring_element", ring_elements),
                ("generate_kbit_random_tensor", random_bits),
                ("get_default_provider", current_provider),
            ):
                if hasattr(module, old):
                    setattr(module, old, new)
    ArithmeticSharedTensor.div_ = truncate
    crypten.config.cfg.mpc.provider = PROVIDER


@contextmanager
def session(communicator: Communicator, provider: Dealt, zero_seed: bytes) -> Iterator[None]:
    """Give CrypTen this query's peer, tuples and streams, and take them away afterwards."""
    # With two parties, each one's stream towards the next is the other's towards the previous, and both know both.
    prg = zero_sharing(zero_seed)
    mine, other = Stream(prg), Stream(prg, FAR)
    order = ("prev", "next") if communicator.get_rank() == 0 else ("next", "prev")
    before = crypten.communicator.get, {name: dict(streams) for name, streams in crypten.generators.items()}
    crypten.generators.update({order[0]: {CPU: mine}, order[1]: {CPU: other}, "local": {}, "global": {}})
    crypten.communicator.get = lambda: communicator
    _current.append(provider)
    try:
        yield
    finally:
        _current.pop()
        crypten.communicator.get = before[0]
        crypten.generators.update(before[1])


def require_sound_streams(new: Callable[[int], Any] = Stream.of) -> None:
    """Check that seeds which differ in their high 32 bits alone give different streams, as CrypTen draws from them.

    Parameters
    ----------
    new : callable
        Makes a generator from a seed of 64 bits.

    Raises
    ------
    IntegrityError
        They give the same (``self-test``).
    """
    draw = crypten.mpc.primitives.arithmetic.generate_random_ring_element
    first, second = (draw((64,), generator=new(seed)) for seed in (7, 7 + (1 << 32)))
    if (first == second).any():
        raise IntegrityError("CrypTen's masks have a key of 32 bits", code="self-test")


def require_refusal() -> None:
    """Check that CrypTen's own providers are refused; IntegrityError (``self-test``) otherwise."""
    for name in ("TFP", "TTP"):
        with crypten.config.cfg.temp_override({"mpc.provider": name}):
            try:
                crypten.mpc.get_default_provider()
            except ConfigError:
                continue
        raise IntegrityError(f"CrypTen accepts the provider {name}", code="self-test")


__all__ = ["ArithmeticSharedTensor", "Communicator", "Dealt", "MPCTensor", "harden", "session", "tensor", "words"]
