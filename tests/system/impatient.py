"""Relays that look for a server that was killed four times a second, where NVFlare waits for up to ten seconds.

Tests kill the server often, and NVFlare waits the longer the more often: its pauses are constants, not settings. All
else is as in any kit. Runs inside of the real client processes, beside our relay there, as a component.
"""

from __future__ import annotations

from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.f3.sfm import conn_manager

PAUSE_S = 0.25
CLASS = f"{__name__}.Impatient"


class Impatient(FLComponent):
    def __init__(self) -> None:
        super().__init__()
        conn_manager.INIT_WAIT = conn_manager.MAX_WAIT = PAUSE_S
