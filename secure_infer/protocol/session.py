"""The one rule of all sessions: a message is either legal in the present state, or the session ends and stays ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar

from dicom_node.core.errors import ProtocolError

from .messages import Message


class State(Enum):
    """Where a session stands; each role uses some of these, in this order."""

    NEW = "new"
    DEALING = "dealing"  # party 0 waits for its half
    OPENING = "opening"  # party 0 waits for party 1
    FETCHING = "fetching"  # party 1 waits for its half
    LOADING = "loading"  # party 1 waits for the material of a network
    COVERING = "covering"  # party 1 waits for party 0's covered shares
    READY = "ready"  # both hold their halves; the query may come
    QUERYING = "querying"  # party 0 waits for the output, or for the next gate
    JOINING = "joining"  # a gate is half done: party 0 waits for signs, party 1 for bits
    DONE = "done"
    ABORTED = "aborted"


class Session:
    """A state machine over one bundle, mutated through `handle` alone (and, at party 0, its two beginnings).

    A failure of any kind leaves it `ABORTED`: the bundle is burned and its secrets are dropped.
    """

    LEGAL: ClassVar[Mapping[tuple[State, type[Message]], str]]

    def __init__(self) -> None:
        self.state = State.NEW

    def handle(self, message: Message) -> Message | None:
        """Take a message and return the answer to send, if any.

        Raises
        ------
        ProtocolError
            It is not legal now (``out-of-order``), or its content is wrong; the session is aborted.
        """
        method = self.LEGAL.get((self.state, type(message)))
        if method is None:
            was = self.state
            self.abort()
            raise ProtocolError(
                f"the peer sent {type(message).__name__} to a session that is {was.value}", code="out-of-order"
            )
        answer: Message | None = self._guarded(getattr(self, method), message)
        return answer

    def abort(self) -> None:
        """End the session for good; harmless when it has ended already."""
        if self.state is not State.DONE:
            self.state = State.ABORTED
        self._forget()

    def _forget(self) -> None:
        """Drop every secret."""

    def _guarded(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except BaseException:
            self.abort()
            raise

    def _require(self, state: State) -> None:
        if self.state is not state:
            was = self.state
            self.abort()
            raise ProtocolError(f"a session that is {was.value} cannot do this", code="out-of-order")

    @staticmethod
    def _same(found: bytes, expected: bytes) -> None:
        if found != expected:
            raise ProtocolError("the peer's message is about another bundle", code="wrong-bundle")
