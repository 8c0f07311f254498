"""A coordinator who owns the NVFlare server and sends hospitals whatever commands it likes.

NVFlare's server asks its clients to check a command against their authorization policy by a header of the message; this
one leaves the header out. It runs inside of the real server process, beside our relay there, as a component.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.private.admin_defs import Message

from fl_agent.courier import unix
from fl_agent.courier.nvflare.wire import SOCKET

CLASS = f"{__name__}.HostileCoordinator"


def socket(courier: Path) -> Path:
    return courier.with_name("hostile.sock")


class HostileCoordinator(FLComponent):
    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.SYSTEM_START:
            self._engine = fl_ctx.get_engine()
            unix.serve(socket(Path(os.environ[SOCKET])), self.command)

    def command(self, question: bytes) -> bytes:
        asked: dict[str, Any] = json.loads(question)
        message = Message(topic=asked["topic"], body=asked["body"])
        if asked["zipped"]:
            message.body = base64.b64decode(asked["body"])
        for header, value in asked["headers"].items():
            message.set_header(header, value)
        token = next(client.token for client in self._engine.get_clients() if client.name == asked["site"])
        replies = self._engine.server.admin_server.send_requests_and_get_reply_dict({token: message}, timeout_secs=10)
        return str(replies[token].body if replies[token] else "").encode()
