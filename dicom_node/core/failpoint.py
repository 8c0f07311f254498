"""Named places at which a test kills the process, to prove that a crash there loses and doubles nothing.

The idea is that of the BSD kernel's and etcd's fail points. Armed by the environment variable `VEILRAY_FAILPOINT`,
which whoever starts the process controls anyway; unarmed, a place costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Literal, get_args

Place = Literal[
    "store-temporary-synced",
    "store-renamed",
    "store-committed",
    "assembler-judged",
    "assembler-committed",
    "worker-leased",
    "worker-inferred",
    "worker-report-stored",
    "worker-committed",
    "party0-spent",
    "party1-spent",
    "party1-answered",
    "dealer-dealt",
    "dealer-half-written",
    "dealer-taken",
    "delivery-leased",
    "delivery-sent",
    "delivery-finished",
    "ledger-written",
    "ledger-committed",
    "handover-noted",
    "agent-reserved",
    "agent-accepted",
    "agent-entered",
    "agent-shared",
    "agent-begun",
    "agent-counted",
    "agent-masked",
    "agent-confirmed",
    "agent-unmasked",
    "agent-settled",
    "coordinator-opened",
    "coordinator-numbered",
    "coordinator-summed",
    "coordinator-recorded",
    "coordinator-stored",
    "coordinator-published",
    "search-asked",
    "search-opened",
    "search-measured",
]
PLACES: Final[tuple[Place, ...]] = get_args(Place)
_ARMED: Final = os.environ.get("VEILRAY_FAILPOINT")


def reach(place: Place) -> None:
    """Die by SIGKILL here if this place is armed."""
    if place == _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
