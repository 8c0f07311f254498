"""Party 1, the owner of the weights: sees masked features, returns its share (state machine without I/O)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import ConfigError, ProtocolError

from . import linear
from .messages import Fetch, Half, Masked, Message, Open, Output, Ready
from .plan import LARGEST_OPEN, AnyPlan, Plan
from .prg import weight_masks
from .ring import Words
from .session import Session, State


@dataclass(frozen=True)
class PrivateModel:
    """A model as party 1 serves it: fixed-point weights and biases, one of each for every layer."""

    version: str
    model: bytes
    plan: Plan
    weights: list[Words]
    biases: list[Words]

    @classmethod
    def of(cls, version: str, model: bytes, plan: Plan, tensors: Mapping[str, NDArray[np.float64]]) -> PrivateModel:
        """Round a model's tensors and prove that no input within the program's bound can wrap.

        Raises
        ------
        ConfigError
            Some input could (``ring-overflow``): publish the model with other scales.
        """
        weights, biases = [], []
        bound = plan.program.input_bound
        for number, layer in enumerate(plan.program.layers):
            weight, bias = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"]
            weights.append(plan.ring.encode(weight, plan.program.fraction_bits))
            biases.append(plan.ring.encode(bias, plan.scales[number + 1]))
            step = 2.0**-plan.program.fraction_bits  # rounding moves a weight or a feature by at most half of this
            bound = float(((np.abs(weight) + step).sum(axis=1) * (bound + step) + np.abs(bias) + step).max())
        if bound >= 2.0 ** (plan.ring.bits - 1 - plan.scales[-1]):
            raise ConfigError(f"results of model {version} could wrap around its ring", code="ring-overflow")
        return cls(version, model, plan, weights, biases)


class Served(Protocol):
    """What sessions need to know of a model, whatever its kind."""

    @property
    def version(self) -> str:
        """Version in logs."""
        ...

    @property
    def plan(self) -> AnyPlan:
        """The checked program."""
        ...


Model = TypeVar("Model", bound=Served)


class OwnerSession(Session, Generic[Model]):
    """One bundle at party 1, up to the dealer's half.

    Parameters
    ----------
    hospital : bytes
        Fingerprint of the caller's certificate.
    find : callable
        Returns the model with a hash; raises ProtocolError when it is not served.
    spend : callable
        Marks a bundle as used, durably; raises ProtocolError if it was before, Unavailable beyond the quota.
    lifetime_s : int
        How long the session will wait for the query, seconds; told to the hospital.
    """

    def __init__(
        self,
        hospital: bytes,
        find: Callable[[bytes], Model],
        spend: Callable[[bytes], None],
        lifetime_s: int,
    ) -> None:
        super().__init__()
        self._hospital = hospital
        self._find = find
        self._spend = spend
        self._lifetime_s = lifetime_s
        self._open: Open | None = None
        self.model: Model | None = None

    @property
    def bundle(self) -> bytes:
        """Identifier of the bundle; empty before one was opened."""
        return self._open.bundle if self._open else b""

    def _on_open(self, message: Open) -> Message:
        if message.wants_delta not in (0, 1):
            raise ProtocolError("the hospital's request is malformed", code="malformed-message")
        model = self._find(message.model)
        self._spend(message.bundle)
        self._open, self.model = message, model
        self.state = State.FETCHING
        return Fetch(message.bundle, message.model, model.plan.digest, self._hospital)


class PartySession(OwnerSession[PrivateModel]):
    """One bundle of a chain of matrices at party 1; see `OwnerSession`."""

    LEGAL: ClassVar = {
        (State.NEW, Open): "_on_open",
        (State.FETCHING, Half): "_on_half",
        (State.READY, Masked): "_on_masked",
    }

    def __init__(
        self,
        hospital: bytes,
        find: Callable[[bytes], PrivateModel],
        spend: Callable[[bytes], None],
        lifetime_s: int,
    ) -> None:
        super().__init__(hospital, find, spend, lifetime_s)
        self._corrections: list[Words] = []
        self._next = 0
        self._share: Words | None = None

    @property
    def limit(self) -> int:
        """Longest frame that may come from the hospital now."""
        if self.model is None:
            return LARGEST_OPEN
        return self.model.plan.largest_masked[self._next]

    @property
    def dealer_limit(self) -> int:
        """Longest frame that may come from the dealer now."""
        assert self.model is not None
        return self.model.plan.largest_half

    def _on_half(self, message: Half) -> Message:
        assert self._open is not None
        assert self.model is not None
        self._same(message.bundle, self._open.bundle)
        plan = self.model.plan
        self._corrections = plan.ring.split(message.corrections, [one.output for one in plan.shapes])
        deltas = []
        if self._open.wants_delta:
            masks = weight_masks(message.weight_mask_seed)
            deltas = [
                linear.blind(number, weight, plan.ring, masks) for number, weight in enumerate(self.model.weights)
            ]
        self.state = State.READY
        return Ready(self._open.bundle, self._lifetime_s, plan.ring.to_bytes(deltas))

    def _on_masked(self, message: Masked) -> Message | None:
        assert self._open is not None
        assert self.model is not None
        self._same(message.bundle, self._open.bundle)
        number, plan = self._next, self.model.plan
        if message.layer != number:
            raise ProtocolError("the hospital sent the layers out of order", code="out-of-order")
        masked = plan.ring.from_bytes(message.values, plan.shapes[number].input)
        share = linear.online(
            self.model.weights[number], self.model.biases[number], self._corrections[number], masked, self._share
        )
        if number + 1 < len(plan.shapes):
            self._next, self._share = number + 1, share
            return None
        self.state = State.DONE
        self._forget()
        return Output(self._open.bundle, plan.ring.to_bytes([share]))

    def _forget(self) -> None:
        self._corrections = []
        self._share = None
