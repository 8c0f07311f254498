"""The coordinator's relay: brings frames from the coordinator's Unix socket to sites, over connections they dialled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.apis.shareable import Shareable

from .. import unix
from .site import FRAME, TOPIC, WAIT_S
from .wire import CAME, GROUP, NOTHING, SOCKET, Question


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
        known = {client.name for client in self._engine.get_clients()}
        if not asked.site:
            return "\n".join(sorted(self._send(known, Shareable(), asked.wait_s))).encode()
        request = Shareable({FRAME: asked.frame, WAIT_S: asked.wait_s})
        replies = self._send(known & {asked.site}, request, asked.wait_s)
        frame = replies[asked.site].get(FRAME) if asked.site in replies else None
        return CAME + frame if isinstance(frame, bytes) else NOTHING

    def _send(self, sites: Iterable[str], request: Shareable, wait_s: float) -> dict[str, Shareable]:
        """Send one request to several sites and return the replies of those that are well."""
        targets = list(sites)
        if not targets:
            return {}  # to NVFlare, no targets would mean all
        with self._engine.new_context() as context:
            replies = self._engine.send_aux_request(targets, TOPIC, request, wait_s, context, optional=True)
        return {site: reply for site, reply in (replies or {}).items() if reply.get_return_code() == ReturnCode.OK}
