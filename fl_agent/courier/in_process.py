"""A courier that calls the sites' agents in the coordinator's own process: the same frames, and no wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .courier import Handler


class InProcessCourier:
    """Agents that are asked one after the other.

    Parameters
    ----------
    sites : mapping of str to callable
        Each site's handler. They are called in the caller's thread, so no time-out can cut one short.
    """

    def __init__(self, sites: Mapping[str, Handler]) -> None:
        self._sites = dict(sites)

    def connected(self) -> frozenset[str]:
        """Name all sites."""
        return frozenset(self._sites)

    def exchange(self, frames: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Bring each site its frame and yield (site, answer); see `Courier`."""
        for name, frame in frames.items():
            if name in self._sites:
                yield name, self._sites[name](frame)

    def close(self) -> None:
        """Let go of nothing: the agents belong to the caller."""
