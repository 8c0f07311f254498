"""What a kit brings for the settings of its owner, with room for the keys that nobody but their owners can tell.

Whoever makes kits could put keys of its own in. So there are none: each administrator hears each key from its owner,
reads it back and fills it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Hospitals at least that a site asks for, unless fewer take part at all (`FederationSettings.minimum_cohort`).
COHORT: Final = 5
TOLD: Final = "as its owner tells you on a trusted way, who gets it from `fl-agent identity`"


def federation(name: str, hospitals: Sequence[str]) -> str:
    """Write the section [training.federation] for a hospital's site.toml."""
    others = "".join(f'  "",  # {other}\n' for other in hospitals if other != name)
    return (
        f"# For site.toml of {name}. Each empty key is filled in {TOLD}.\n"
        "[training.federation]\n"
        'identity_file = "/etc/veilray/identity.pem"\n'
        'coordinator = ""\n'
        f"roster = [\n{others}]\n"
        f"minimum_cohort = {min(COHORT, len(hospitals))}\n"
        'socket = "/run/veilray-agent/agent.sock"\n'
        'socket_group = "veilray-relay"\n'
    )


def members(hospitals: Sequence[str]) -> str:
    """Write the members and the courier for the coordinator's coordinator.toml."""
    listed = "".join(f'\n[[members]]\nname = "{name}"\nidentity = ""\npatients = 1\n' for name in hospitals)
    return (
        f"# For coordinator.toml. Each identity is filled in {TOLD};\n"
        "# `patients` is about how many patients the hospital has.\n"
        f"{listed}"
        '\n[courier]\nsocket = "/run/veilray-relay/courier.sock"\n'
    )
