"""The coordinator's relay: brings frames from the coordinator's Unix socket to sites, over connections they dialled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from .. import unix
from .site import FRAME, TOPIC, WAIT_S
from .wire import CAME, GROUP, NOTHING, SOCKET, Question


class Gone(Signal):  # type: ignore[misc]  # nvflare is untyped
    """Ends the wait for a relay that is no more: started anew, it has registered and got another token.

    Whoever comes back does not know what was asked of the process before. Without this, the coordinator would wait for
    a lost answer as long as for one that takes a hospital's computer minutes.

    Parameters
    ----------
    engine : ServerEngineSpec
    token : str
        Of the relay that was asked. NVFlare takes it away, too, from one whose heart does not beat for a minute.
    """

    def __init__(self, engine: ServerEngineSpec, token: str) -> None:
        super().__init__()
        self._engine, self._token = engine, token

    @property
    def triggered(self) -> bool:
        """Whether nobody has the token any more; NVFlare asks while it waits."""
        return all(client.token != self._token for client in self._engine.get_clients())


class ServerRelay(FLComponent):  # type: ignore[misc]  # nvflare is untyped
    """Runs inside of NVFlare's long-lived server process; `policy.coordinator` names it among its components.

    It looks into no frame and keeps none. Each question has a thread of its own, so a slow site delays nobody.
    """

    _engine: ServerEngineSpec

    def __init__(self) -> None:
        super().__init__()
        self._socket = Path(os.environ[SOCKET])
        self._server: unix.Server | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Serve the coordinator from the start of the NVFlare server to its end."""
        if event_type == EventType.SYSTEM_START and self._server is None:
            self._engine = fl_ctx.get_engine()
            self._server = unix.serve(self._socket, self.answer, os.environ.get(GROUP))
        elif event_type == EventType.SYSTEM_END and self._server is not None:
            self._server.close()
            self._server = None

    def answer(self, question: bytes) -> bytes:
        """Answer one question of the coordinator (`wire`); called by several threads."""
        asked = Question.decode(question)
        known = {client.name: client.token for client in self._engine.get_clients()}
        if not asked.site:
            return "\n".join(sorted(self._send(known, Shareable(), asked.wait_s, Signal()))).encode()
        if asked.site not in known:
            return NOTHING
        request = Shareable({FRAME: asked.frame, WAIT_S: asked.wait_s})
        gone = Gone(self._engine, known[asked.site])
        replies = self._send([asked.site], request, asked.wait_s, gone)
        frame = replies[asked.site].get(FRAME) if asked.site in replies else None
        return CAME + frame if isinstance(frame, bytes) else NOTHING

    def _send(self, sites: Iterable[str], request: Shareable, wait_s: float, end: Signal) -> dict[str, Shareable]:
        """Send one request to several sites and return the replies of those that are well, until the signal at most."""
        targets = list(sites)
        if not targets:
            return {}  # to NVFlare, no targets would mean all
        with self._engine.new_context() as context:
            context.put(ReservedKey.RUN_ABORT_SIGNAL, end, private=True, sticky=False)
            replies = self._engine.send_aux_request(targets, TOPIC, request, wait_s, context, optional=True)
        return {site: reply for site, reply in (replies or {}).items() if reply.get_return_code() == ReturnCode.OK}
