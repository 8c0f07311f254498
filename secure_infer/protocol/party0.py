"""Party 0, the hospital: masks the features, opens the output (state machine without I/O; `README.md`, "Course")."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dicom_node.core.errors import IntegrityError, ProtocolError

from . import linear
from .messages import Bundle, Deal, Masked, Message, Open, Output, Ready, Vector
from .plan import LARGEST_FAILURE, AnyPlan, Plan
from .prg import Context, Prg, bundle_masks
from .ring import Words
from .session import Session, State

#: Outputs beyond the card's bound by more than rounding explains are not the model's.
TOLERANCE = 1.25


@dataclass(frozen=True)
class Terms:
    """What all of a hospital's sessions with one model share.

    Attributes
    ----------
    plan : Plan or NetworkPlan
    model : bytes
        SHA-256 of the model card.
    hospital, party : bytes
        Fingerprints of the two certificates.
    spend : callable
        Marks a bundle as used, durably; raises ProtocolError if it was before.
    deltas : mutable mapping
        Blinded weights by the identifier of their mask; filled by the first session.
    """

    plan: AnyPlan
    model: bytes
    hospital: bytes
    party: bytes
    spend: Callable[[bytes], None]
    deltas: MutableMapping[bytes, list[Words]]


class HospitalSession(Session):
    """One query from the dealer's half to the opened output; each kind of program has its own.

    Parameters
    ----------
    terms : Terms
    random : callable
        Returns as many unpredictable bytes as asked for, e.g. `os.urandom`.
    """

    def __init__(self, terms: Terms, random: Callable[[int], bytes]) -> None:
        super().__init__()
        self._terms = terms
        self._session = random(16)
        self._half: Bundle | None = None
        self._deltas: list[Words] | None = None
        self.lifetime_s = 0
        self.outputs: NDArray[np.float64] | None = None

    @property
    def bundle(self) -> bytes:
        """Identifier of the bundle; empty before the dealer gave one."""
        return self._half.bundle if self._half else b""

    def begin(self) -> Deal:
        """Ask the dealer for a bundle."""
        self._require(State.NEW)
        self.state = State.DEALING
        return Deal(self._session, self._terms.model, self._terms.party, self._terms.plan.encoded)

    def _on_bundle(self, message: Bundle) -> Message:
        self._terms.spend(message.bundle)
        self._half = message
        self.state = State.OPENING
        self._deltas = self._terms.deltas.get(message.weight_mask_id)
        return Open(message.bundle, self._terms.model, 0 if self._deltas else 1)

    def _on_ready(self, message: Ready) -> None:
        assert self._half is not None
        self._same(message.bundle, self._half.bundle)
        terms, half = self._terms, self._half
        masks = bundle_masks(half.seed, Context(self._session, half.bundle, terms.model, terms.hospital, terms.party))
        self._prepare(message, masks)
        self._half = Bundle(half.bundle, bytes(32), half.weight_mask_id)  # the seed has done its work
        self.lifetime_s = message.lifetime_s
        self.state = State.READY

    @abstractmethod
    def _prepare(self, message: Ready, bundle: Prg) -> None:
        """Compute ahead all that does not depend on the image."""

    def _blinded(self, values: Vector, shapes: Sequence[tuple[int, ...]]) -> list[Words]:
        """Return the blinded weights; `values` holds them the first time and is empty later."""
        assert self._half is not None
        if self._deltas is None:
            self._deltas = self._terms.plan.ring.split(values, shapes)
            self._terms.deltas.clear()  # one model has one mask; another one means that the dealer's key was changed
            self._terms.deltas[self._half.weight_mask_id] = self._deltas
        elif values:
            raise ProtocolError("party 1 sent blinded weights that nobody asked for", code="wrong-size")
        return self._deltas

    @property
    @abstractmethod
    def limit(self) -> int:
        """Longest frame that may come from party 1 during a query."""

    def covers(self) -> Iterator[Message]:
        """Give what party 1 needs between its `Ready` and the query."""
        return iter(())

    def query(self, columns: NDArray[np.float64]) -> list[Masked]:
        """Mask the features; afterwards the session waits for the output.

        Parameters
        ----------
        columns : ndarray of float64, shape (in_features, columns), or a network's input shape
            Checked against the program by the engine.
        """
        self._require(State.READY)
        masked: list[Masked] = self._guarded(self._mask, columns)
        self.state = State.QUERYING
        return masked

    @abstractmethod
    def _mask(self, columns: NDArray[np.float64]) -> list[Masked]: ...

    def _finish(self, opened: NDArray[np.float64], bound: float) -> None:
        """Take the opened output, unless it is beyond the model's bound."""
        if (np.abs(opened) > TOLERANCE * bound).any():
            # Not a ProtocolError, which would be tried again: party 1, who chose this share, would see by the second
            # query in which range the true output lies.
            raise IntegrityError(
                "the opened output is beyond the model's bound: party 1 or the dealer did not follow the protocol",
                code="output-out-of-range",
            )
        self.outputs = opened
        self.state = State.DONE
        self._forget()

    def _forget(self) -> None:
        if self._half:
            self._half = Bundle(self._half.bundle, bytes(32), self._half.weight_mask_id)


class ChainHospital(HospitalSession):
    """One query on a chain of matrices; see `HospitalSession`."""

    LEGAL: ClassVar = {
        (State.DEALING, Bundle): "_on_bundle",
        (State.OPENING, Ready): "_on_ready",
        (State.QUERYING, Output): "_on_output",
    }

    def __init__(self, terms: Terms, random: Callable[[int], bytes]) -> None:
        super().__init__(terms, random)
        assert isinstance(terms.plan, Plan)
        self._plan = terms.plan
        self._layers: list[linear.Prepared] = []

    @property
    def limit(self) -> int:
        """Longest frame that may come from party 1 during a query."""
        return max(self._plan.largest_output, LARGEST_FAILURE)

    def _prepare(self, message: Ready, bundle: Prg) -> None:
        plan = self._plan
        deltas = self._blinded(message.deltas, [one.weight for one in plan.shapes])
        self._layers = [
            linear.offline(number, shapes, plan.ring, bundle, delta)
            for number, (shapes, delta) in enumerate(zip(plan.shapes, deltas, strict=True))
        ]

    def _mask(self, columns: NDArray[np.float64]) -> list[Masked]:
        ring = self._plan.ring
        share = ring.encode(columns, self._plan.scales[0])
        found = []
        for number, prepared in enumerate(self._layers):
            found.append(Masked(self.bundle, number, ring.to_bytes([linear.mask(prepared, share)])))
            share = prepared.share
        return found

    def _on_output(self, message: Output) -> None:
        self._same(message.bundle, self.bundle)
        plan = self._plan
        theirs = plan.ring.from_bytes(message.values, plan.shapes[-1].output)
        self._finish(plan.ring.decode(self._layers[-1].share + theirs, plan.scales[-1]), plan.program.output_bound)

    def _forget(self) -> None:
        super()._forget()
        self._layers = []
