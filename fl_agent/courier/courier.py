"""What coordinator and agent expect of whatever carries their frames (Bonawitz et al. 2017, section 2).

Frames are sealed and signed before a courier sees them (`fl_agent.secagg`, `fl_agent.learning`), so a courier is not
trusted: what it loses is a drop-out, what it alters is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

#: What a site's agent does with a frame: it answers with one, empty where it has nothing to say. It never raises.
Handler = Callable[[bytes], bytes]


class Courier(Protocol):
    """The coordinator's way to the sites, which dial out: it can only answer to connections that they hold open."""

    def connected(self) -> frozenset[str]:
        """Name the sites that can be reached now."""

    def exchange(self, frames: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Bring each site its frame and yield (site, answer) as the answers come.

        Parameters
        ----------
        frames : mapping of str to bytes
            By site.
        timeout_s : float
            For all of them together. A site that is away, slow or broken is left out and stops nobody else.

        Raises
        ------
        Unavailable
            The courier itself is down (``courier``); no site was reached, and the round is over.
        """

    def close(self) -> None:
        """Let go of what it holds."""
