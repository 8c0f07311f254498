"""The coordinator's side of the NVFlare courier: it asks the server beside it and knows nothing of NVFlare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from dicom_node.core import logs
from dicom_node.core.errors import Unavailable, VeilRayError

from .. import unix
from .wire import CAME, PROBE_S, Question

log = logs.get(__name__)
#: The server notices a site's silence itself; this much later we stop waiting for the server, seconds.
SLACK_S = 5.0


class NVFlareCourier:
    """Carries frames over the connections that the sites hold open to the NVFlare server; see `courier.Courier`.

    It keeps no state: server, relays and this process may each be killed and come back at any time.

    Parameters
    ----------
    socket : Path
        Where the server of this machine answers (`server.ServerRelay`).
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def connected(self) -> frozenset[str]:
        """Name the sites whose relay and agent can be reached now; none while the server is away."""
        try:
            answer = unix.ask(self._socket, Question("", PROBE_S).encode(), PROBE_S + SLACK_S)
        except VeilRayError as error:
            log.warning("courier-away", **logs.describe(error))
            return frozenset()
        return frozenset(answer.decode().split())

    def exchange(self, frames: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Bring each site its frame and yield (site, answer) as the answers come.

        Raises
        ------
        Unavailable
            The server is away and no site answered (``courier``).
        """
        pool = ThreadPoolExecutor(max_workers=max(len(frames), 1), thread_name_prefix="courier")
        asked = {pool.submit(self._carry, site, frame, timeout_s): site for site, frame in frames.items()}
        answered, failed = 0, 0
        try:
            for done in as_completed(asked):
                try:
                    answer = done.result()
                except VeilRayError as error:
                    failed += 1  # the server here, not the site: of a site that fails, the server says so
                    log.warning("site-left-out", peer=asked[done], **logs.describe(error))
                    continue
                if answer.startswith(CAME):
                    answered += 1
                    yield asked[done], answer[len(CAME) :]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failed and not answered:
            raise Unavailable(f"the NVFlare server behind {self._socket} is away; start the relay", code="courier")

    def _carry(self, site: str, frame: bytes, timeout_s: float) -> bytes:
        return unix.ask(self._socket, Question(site, timeout_s, frame).encode(), timeout_s + SLACK_S)

    def close(self) -> None:
        """Nothing is held."""
