"""What a kit brings for the settings of its owner, with room for the keys that nobody but their owners can tell.

Whoever makes kits could put keys of its own in. So there are none: each administrator hears each key from its owner,
reads it back and fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from .wire import COORDINATOR

#: Hospitals at least that a site asks for, unless fewer take part at all (`FederationSettings.minimum_cohort`).
COHORT: Final = 5
#: Where the units of `orthanc_config` look for them.
IDENTITY: Final = Path("/var/lib/veilray/identity.pem")
AGENT_SOCKET: Final = Path("/run/veilray-agent/agent.sock")
COURIER_SOCKET: Final = Path("/run/veilray-relay/courier.sock")
NO_KEYS: Final[Mapping[str, str]] = MappingProxyType({})
TOLD: Final = "as its owner tells you on a trusted way, who gets it from `fl-agent identity`"


def federation(
    name: str,
    hospitals: Sequence[str],
    keys: Mapping[str, str] = NO_KEYS,
    identity: Path = IDENTITY,
    socket: Path = AGENT_SOCKET,
    group: str = "veilray-relay",
) -> str:
    """Write the section [training.federation] for a hospital's site.toml.

    Parameters
    ----------
    name : str
    hospitals : sequence of str
        All of them.
    keys : mapping of str to str
        Public keys, also the coordinator's, where they are known.
    identity, socket : Path
        As `orthanc_config/systemd` has them, by default.
    group : str
        Of the relay's user; empty where that is the agent's.
    """
    others = "".join(f'  "{keys.get(other, "")}",  # {other}\n' for other in hospitals if other != name)
    return (
        f"# For site.toml of {name}. Each empty key is filled in {TOLD}.\n"
        "[training.federation]\n"
        f'identity_file = "{identity}"\n'
        f'coordinator = "{keys.get(COORDINATOR, "")}"\n'
        f"roster = [\n{others}]\n"
        f"minimum_cohort = {min(COHORT, len(hospitals))}\n"
        f'socket = "{socket}"\n' + (f'socket_group = "{group}"\n' if group else "")
    )


def members(
    hospitals: Sequence[str], keys: Mapping[str, str] = NO_KEYS, patients: int = 1, socket: Path = COURIER_SOCKET
) -> str:
    """Write the members and the courier for the coordinator's coordinator.toml; see `federation`."""
    listed = "".join(
        f'\n[[members]]\nname = "{name}"\nidentity = "{keys.get(name, "")}"\npatients = {patients}\n'
        for name in hospitals
    )
    return (
        f"# For coordinator.toml. Each identity is filled in {TOLD};\n"
        "# `patients` is about how many patients the hospital has.\n"
        f"{listed}"
        f'\n[courier]\nsocket = "{socket}"\n'
    )
