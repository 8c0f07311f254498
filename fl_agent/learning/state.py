"""What every site must know before a round, as bytes whose hash the round's signed header holds."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ProtocolError

from .plan import Plan

#: Of a number of the state, in absolute value; a model's are far below. Beyond, the scores of some patients would
#: overflow and not those of others, and a site that leaves a round over that would tell the coordinator of them.
LARGEST: Final = 1e6
#: Sums known.
_START: Final = Struct(">I")


@dataclass(frozen=True)
class State:
    """The model between two sums.

    Attributes
    ----------
    done : int
        Sums known, from 0.
    centre : ndarray of float32, shape (channels,)
        What features are centred by; zeros before it is known.
    weights : ndarray of float32, shape (dimension,)
        Trainable parameters, flat.
    deviations : ndarray of float32, shape (channels,), optional
        What each feature is scaled by, where the plan asks for that; ones before it is known.
    """

    done: int
    centre: NDArray[np.float32]
    weights: NDArray[np.float32]
    deviations: NDArray[np.float32] | None = None

    def encode(self) -> bytes:
        """Write it: sums known (4 bytes, big-endian), then the numbers, little-endian binary32."""
        held = [self.centre, *([] if self.deviations is None else [self.deviations]), self.weights]
        return _START.pack(self.done) + b"".join(one.astype("<f4").tobytes() for one in held)


def read(plan: Plan, content: bytes) -> State:
    """Read what `encode` wrote under this plan.

    Raises
    ------
    ProtocolError
        Of another length, beyond the plan's sums, with a number that is none or too large, or with a deviation that is
        too small (``malformed-state``).
    """
    scaled = plan.centre is not None and plan.centre.squares is not None
    if len(content) != _START.size + 4 * (plan.channels * (1 + scaled) + plan.dimension):
        raise _malformed()
    (done,) = _START.unpack_from(content)
    numbers = np.frombuffer(content, dtype="<f4", offset=_START.size).astype(np.float32)
    # Written so that what is no number is refused, too.
    if done >= plan.sums or not (np.abs(numbers) <= LARGEST).all():
        raise _malformed()
    centre, deviations, weights = np.split(numbers, [plan.channels, plan.channels * (1 + scaled)])
    if (deviations < 1.0 / LARGEST).any():
        raise _malformed()
    return State(done, centre, weights, deviations if scaled else None)


def _malformed() -> ProtocolError:
    return ProtocolError("the round's state does not fit the plan of its run", code="malformed-state")
