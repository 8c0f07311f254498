"""The hospital's relay: hands the coordinator's frames to the agent and its answers back, and can do nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from dicom_node.core.errors import VeilRayError

from .. import unix
from .wire import LONGEST_S, SOCKET

TOPIC = "veilray.carry"
FRAME, WAIT_S = "frame", "wait_s"


class SiteRelay(FLComponent):  # type: ignore[misc]  # nvflare is untyped
    """Runs inside of NVFlare's long-lived client process; `policy.hospital` names it as the only component.

    NVFlare's client obeys commands of its server: deploy an app, start a job, show a file. But for an app's own code it
    consults its authorization policy only where the *server's message* says so: policy files protect a hospital from
    the server's users and not from the server. This class takes all commands away before the client registers; frames
    come as auxiliary messages, which need no job.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agent = Path(os.environ[SOCKET])

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Disarm the client before it registers with the server, then take frames."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            ClientRequestProcessors.request_processors.clear()
        elif event_type == EventType.BEFORE_CLIENT_REGISTER:
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self.carry)

    def carry(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Give the agent's answer to a frame; without a frame, say whether an agent is there. Never raises."""
        frame, wait_s = request.get(FRAME), request.get(WAIT_S)
        reply = make_reply(ReturnCode.OK)
        try:
            if frame is None:
                return reply if unix.served(self._agent) else make_reply(ReturnCode.SERVICE_UNAVAILABLE)
            if not isinstance(frame, bytes) or not isinstance(wait_s, float) or not 0 <= wait_s <= LONGEST_S:
                return make_reply(ReturnCode.BAD_REQUEST_DATA)
            reply[FRAME] = unix.ask(self._agent, frame, wait_s)
        except VeilRayError as error:
            self.logger.warning("the agent gave no answer: %s", error.code)
            return make_reply(ReturnCode.SERVICE_UNAVAILABLE)
        return reply
