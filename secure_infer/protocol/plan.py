"""What follows from a public program: ring, scales and the exact size of everything that is sent."""

from __future__ import annotations

import hashlib
from math import prod
from typing import Final

from pydantic import TypeAdapter, ValidationError

from dicom_node.core.errors import ConfigError, ProtocolError

from ..card import Program
from ..program import NetworkProgram
from .linear import Shapes
from .messages import LARGEST_FRAME, LARGEST_PROGRAM, Deal, Fetch, Half, Masked, Open, Output, Ready, overhead
from .network_plan import NetworkPlan
from .ring import Ring

EITHER: Final[TypeAdapter[Program | NetworkProgram]] = TypeAdapter(Program | NetworkProgram)
#: Room for a failure's code wherever a shorter message is expected.
LARGEST_FAILURE = 64


class Plan:
    """A checked program.

    Parameters
    ----------
    program : Program
        The card's private part.

    Raises
    ------
    ConfigError
        Results would not fit the ring, or messages would not fit a frame.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.ring = Ring(program.ring_bits)
        self.shapes = [Shapes.of(layer) for layer in program.layers]
        #: Fractional bits of the input of each layer, and of the output: nothing is truncated on the way.
        self.scales = [program.fraction_bits * (depth + 1) for depth in range(len(self.shapes) + 1)]
        if program.output_bound * 4.0 >= 2.0 ** (self.ring.bits - self.scales[-1]):
            raise ConfigError("the program's results do not fit its ring", code="ring-overflow")
        self.encoded = program.model_dump_json().encode()
        self.digest = hashlib.sha256(self.encoded).digest()
        weights = sum(prod(one.weight) for one in self.shapes) * self.ring.width
        corrections = sum(prod(one.output) for one in self.shapes) * self.ring.width
        inputs = [prod(one.input) * self.ring.width for one in self.shapes]
        self.largest_ready = overhead(Ready) + weights
        self.largest_half = overhead(Half) + corrections
        self.largest_masked = [overhead(Masked) + size for size in inputs]
        self.largest_output = overhead(Output) + prod(self.shapes[-1].output) * self.ring.width
        frames = (self.largest_ready, self.largest_half, *self.largest_masked)
        if max(frames) > LARGEST_FRAME or len(self.encoded) > LARGEST_PROGRAM:
            raise ConfigError("the program is too large for this protocol", code="program-too-large")


#: What the sessions of either kind of program are made from.
AnyPlan = Plan | NetworkPlan


def plan_of(program: Program | NetworkProgram) -> AnyPlan:
    """Check a program of either kind; errors as `Plan` and `NetworkPlan`."""
    return Plan(program) if isinstance(program, Program) else NetworkPlan(program)


def parse(encoded: bytes) -> AnyPlan:
    """Read a program that a peer sent.

    Raises
    ------
    ProtocolError
        It is malformed, too large, or not in its one canonical spelling (``malformed-program``).
    """
    try:
        plan = plan_of(EITHER.validate_json(encoded))
    except (ValidationError, ConfigError) as error:
        raise ProtocolError("the peer's program is malformed or too large", code="malformed-program") from error
    if plan.encoded != encoded:
        raise ProtocolError("the peer's program is not in its canonical form", code="malformed-program")
    return plan


LARGEST_DEAL = overhead(Deal) + LARGEST_PROGRAM
LARGEST_OPEN = max(overhead(Open), LARGEST_FAILURE)
LARGEST_FETCH = max(overhead(Fetch), LARGEST_FAILURE)
