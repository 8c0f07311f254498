"""A courier to agents on the coordinator's own machine, through their Unix sockets: for trials and for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from dicom_node.core import logs
from dicom_node.core.errors import VeilRayError

from . import unix

log = logs.get(__name__)


class LocalCourier:
    """Agents behind sockets, asked all at once.

    Parameters
    ----------
    sites : mapping of str to Path
        Each site's socket.
    """

    def __init__(self, sites: Mapping[str, Path]) -> None:
        self._sites = dict(sites)
        self._pool = ThreadPoolExecutor(max_workers=len(sites), thread_name_prefix="courier")

    def connected(self) -> frozenset[str]:
        """Name the sites whose agent answers at its socket."""
        return frozenset(name for name, path in self._sites.items() if unix.served(path))

    def exchange(self, frames: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Bring each site its frame and yield (site, answer) as they come; see `Courier`."""
        asked: dict[Future[bytes], str] = {
            self._pool.submit(unix.ask, self._sites[name], frame, timeout_s): name for name, frame in frames.items()
        }
        for one in as_completed(asked):
            try:
                yield asked[one], one.result()
            except VeilRayError as error:
                log.warning("site-silent", peer=asked[one], **logs.describe(error))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
