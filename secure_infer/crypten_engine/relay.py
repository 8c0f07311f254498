"""One query between the CrypTen process of a party and its peer: every frame's order and size is checked here."""

from __future__ import annotations

from dicom_node.core.errors import ProtocolError

from ..protocol.messages import LARGEST_FAILURE, Exchange, Vector, overhead
from ..transport.channel import Channel
from .pipe import Kind, Pipe


class Relay:
    """Carries shares until the child gives its share of the output.

    Parameters
    ----------
    pipe : Pipe
    channel : Channel
        To the peer.
    bundle : bytes
    speaks_first : bool
        Party 0 sends before it receives, party 1 after: so neither waits for the other to read.
    """

    def __init__(self, pipe: Pipe, channel: Channel, bundle: bytes, *, speaks_first: bool) -> None:
        self._pipe, self._channel, self._bundle = pipe, channel, bundle
        self._speaks_first = speaks_first
        self._number = 0

    def run(self) -> Vector:
        """Carry on until the child is done; return its share of the output.

        Raises
        ------
        Unavailable
            The peer or the child is gone or silent.
        ProtocolError
            The peer sent something else than what is due.
        """
        while True:
            kind, values = self._pipe.receive()
            if kind is Kind.OUTPUT:
                return values
            if self._speaks_first:
                self.send(values)
            theirs = self.receive(len(values))
            if not self._speaks_first:
                self.send(values)
            self._number += 1
            self._pipe.send(Kind.PEERS, theirs)

    def send(self, values: Vector) -> None:
        """Send a share of the present opening."""
        self._channel.send(Exchange(self._bundle, self._number, values))

    def receive(self, size: int) -> Vector:
        """Wait for the peer's share of the present opening, which must have exactly `size` bytes."""
        found = self._channel.receive(max(overhead(Exchange) + size, LARGEST_FAILURE))
        if not isinstance(found, Exchange) or found.layer != self._number:
            raise ProtocolError(f"{self._channel.name} sent something out of order", code="out-of-order")
        if found.bundle != self._bundle:
            raise ProtocolError("the peer's message is about another bundle", code="wrong-bundle")
        if len(found.values) != size:
            raise ProtocolError(f"{self._channel.name} sent a share of the wrong size", code="wrong-size")
        return found.values
