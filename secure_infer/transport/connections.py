"""Connections that are kept open for the next bundle: a TLS handshake costs more than most of what follows it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from dicom_node.core.credentials import Credentials
from dicom_node.core.errors import Unavailable
from dicom_node.core.settings import EndpointSettings

from ..protocol.messages import Message
from .channel import Channel

#: Kept open at most; more are closed after use.
LARGEST_IDLE: Final = 8
#: Firewalls and the other side forget connections that say nothing: older ones are closed, seconds.
IDLE_S: Final = 60.0


class Connections:
    """Channels to one service, each used by one thread at a time.

    Parameters
    ----------
    endpoint, name, timeout_s
        As `Channel.dial`.
    credentials : Credentials
        What a new connection is opened with, and by which one that was kept is judged.
    clock : callable
        Seconds of a clock that is never set back.
    """

    def __init__(
        self,
        endpoint: EndpointSettings,
        credentials: Credentials,
        name: str,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint, self._credentials = endpoint, credentials
        self._name, self._timeout_s = name, timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: deque[tuple[float, Channel]] = deque()
        self._closed = False

    def ask(
        self, message: Message, limit: int, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[Channel, Message]:
        """Send a message on a connection of our own; give the connection and the first answer.

        The caller keeps or closes the connection. An idle one that the other side has closed meanwhile is replaced by a
        new one, once.

        Parameters
        ----------
        limit : int
            Longest frame that may come as the answer.
        meanwhile : callable
            Work for the time until the answer; called again with a new connection.

        Raises
        ------
        VeilRayError
            As `Channel.dial`, `Channel.send` and `Channel.receive`.
        """
        kept = self._take()
        if kept is not None:
            try:
                return kept, _exchange(kept, message, limit, meanwhile)
            except Unavailable as error:
                if error.code != "connection-closed":
                    raise
        fresh = Channel.dial(self._endpoint, self._credentials.client, self._name, self._timeout_s)
        return fresh, _exchange(fresh, message, limit, meanwhile)

    def _take(self) -> Channel | None:
        while True:
            with self._lock:
                since, channel = self._idle.pop() if self._idle else (0.0, None)  # the newest is the likeliest alive
            if channel is None:
                return None
            fresh = since + IDLE_S > self._clock() and channel.quiet
            if fresh and not self._credentials.revoked(channel.certificate):
                channel.sent = channel.received = 0  # what is counted is one use
                return channel
            channel.close()

    def keep(self, channel: Channel) -> None:
        """Keep a connection on which nothing is under way for the next use."""
        with self._lock:
            kept = not self._closed and len(self._idle) < LARGEST_IDLE
            if kept:
                self._idle.append((self._clock(), channel))
        if not kept:
            channel.close()

    def close(self) -> None:
        """Close all that are idle, and those in use when they come back."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        for _, channel in idle:
            channel.close()


def _exchange(channel: Channel, message: Message, limit: int, meanwhile: Callable[[], None]) -> Message:
    try:
        channel.send(message)
        meanwhile()
        return channel.receive(limit)
    except BaseException:
        channel.close()
        raise
