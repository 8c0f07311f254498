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

HOSPITALS = ("north", "east", "south")
#: A hospital with NVFlare's own client: its policy files are ours, but it lacks our relay.
STOCK = "stock"
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


def install(kits: Path) -> None:
    """Add the hostile coordinator to the server, and put NVFlare's own client in place of our relay in one kit."""
    change(kits / "coordinator" / "local" / "resources.json", {"id": "hostile", "path": CLASS})
    managers = "nvflare.app_common.resource_managers.list_resource_manager.ListResourceManager"
    launcher = "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher"
    manager = {"id": "resource_manager", "path": managers, "args": {"resources": {}}}
    resources = kits / STOCK / "local" / "resources.json"
    change(resources, manager, {"id": "process_launcher", "path": launcher}, keep=False)
    started = kits / STOCK / "startup" / "fed_client.json"
    started.write_text(started.read_text().replace('"require_signed_jobs": true', '"require_signed_jobs": false'))


def change(file: Path, *components: dict[str, object], keep: bool = True) -> None:
    """Put components into a kit's ``resources.json``, beside those that are there or in their place."""
    resources = json.loads(file.read_text())
    kept = resources["components"] if keep else []
    file.write_text(json.dumps({**resources, "components": [*kept, *components]}))
