"""The one rule of all sessions: what may come next follows from the program; anything else ends the session for good.

A program fixes the whole course of a query: which messages come, in which order, about which layer and how long each
is. A session therefore keeps the list of what it still awaits (`Plan.to_hospital`, `Plan.to_party`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import NamedTuple

from dicom_node.core.errors import ProtocolError

from .messages import LARGEST_FAILURE, Message, OfBundle, overhead


class State(Enum):
    """Where a session stands."""

    NEW = "new"
    PREPARING = "preparing"  # offline: nothing that depends on the image has been sent
    READY = "ready"  # both hold their halves; the query may come
    QUERYING = "querying"
    AUDITING = "auditing"  # the bundle is given up for a test of the dealer
    DONE = "done"
    ABORTED = "aborted"


class Step(NamedTuple):
    """One message that a party awaits.

    Attributes
    ----------
    kind : type of Message
    name : str
        The layer or tensor that it is about; empty where it is about the whole program.
    layer : int
        The number of that layer.
    size : int
        Length of the open-ended field, bytes; of a signed manifest, whose length varies, the greatest.
    """

    kind: type[OfBundle]
    name: str = ""
    layer: int = 0
    size: int = 0


class Session:
    """A state machine over one bundle, mutated through `handle` alone (and, at party 0, its two beginnings).

    A failure of any kind leaves it `ABORTED`: the bundle is burned and its secrets are dropped.

    Attributes
    ----------
    bundle : bytes
        Identifier of the bundle; empty before it is known.
    awaited : list of Step
        What the peers have to send, in order; empty while it is this party's turn to begin.
    """

    def __init__(self) -> None:
        self.state = State.NEW
        self.bundle = b""
        self.awaited: list[Step] = []
        self._forget()

    @property
    def limit(self) -> int:
        """Longest frame that may come now."""
        return max(LARGEST_FAILURE, *(overhead(step.kind) + step.size for step in self.awaited[:1]))

    def answers(self, message: Message) -> Iterator[Message]:
        """Take a message and give, one after the other, what to send before the next one comes; errors as `handle`."""
        answer = self.handle(message)
        while answer is not None:
            yield answer
            with self._burning():
                answer = self._more()

    def _more(self) -> Message | None:
        return None

    def handle(self, message: Message) -> Message | None:
        """Take a message and return the first answer to send, if any.

        Raises
        ------
        ProtocolError
            It is not legal now (``out-of-order``), is about another bundle (``wrong-bundle``) or of the wrong size
            (``wrong-size``), or its content is wrong; the session is aborted.
        """
        with self._burning():
            self._check(message)
            self._step = self.awaited.pop(0)
            answer: Message | None = getattr(self, f"_on_{type(message).__name__.lower()}")(message)
            return answer

    def _check(self, message: Message) -> None:
        step = self.awaited[0] if self.awaited else None
        if step is None or type(message) is not step.kind or getattr(message, "layer", step.layer) != step.layer:
            raise ProtocolError(
                f"the peer sent {type(message).__name__} to a session that is {self.state.value}", code="out-of-order"
            )
        assert isinstance(message, OfBundle)
        if self.bundle not in (b"", message.bundle):
            raise ProtocolError("the peer's message is about another bundle", code="wrong-bundle")
        values = getattr(message, "values", None)
        if values is not None and len(values) != step.size:
            raise ProtocolError(f"the peer sent {len(values)} bytes where {step.size} belong", code="wrong-size")

    def abort(self) -> None:
        """End the session for good; harmless when it has ended already."""
        if self.state is not State.DONE:
            self._end(State.ABORTED)

    def _end(self, state: State) -> None:
        self.state, self.awaited = state, []
        self._forget()

    def _forget(self) -> None:
        """Drop every secret."""
        raise NotImplementedError

    @contextmanager
    def _burning(self, state: State | None = None) -> Iterator[None]:
        """Abort on any failure within; a state that is not the one asked for is one."""
        try:
            if state not in (None, self.state):
                raise ProtocolError(f"a session that is {self.state.value} cannot do this", code="out-of-order")
            yield
        except BaseException:
            self.abort()
            raise
