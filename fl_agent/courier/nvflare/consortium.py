"""The settings file of a consortium, from which its start-up kits are made."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from dicom_node.core.section import Section

from .local import STATE
from .wire import COORDINATOR

AUTHORITY: Final = "authority"
#: Folder beside the kits for what a trial gives their owners.
OWNERS: Final = "owners"
TAKEN: Final = frozenset({COORDINATOR, AUTHORITY, STATE, OWNERS, "server"})
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Host = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$")
]


class ConsortiumSettings(Section):
    """Who takes part, and where the coordinator's server is."""

    name: Name = Field(description="the consortium's name, also that of its authority")
    host: Host = Field(description="host name or address of the coordinator's server, as hospitals dial it")
    port: int = Field(default=8002, ge=1, le=65535, description="its only open port; hospitals open none")
    hospitals: tuple[Name, ...] = Field(description="short names of the hospitals, at least three", min_length=3)

    @field_validator("hospitals")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len({*names, *TAKEN}) != len(names) + len(TAKEN):
            raise ValueError(f"names must differ from each other and from {', '.join(sorted(TAKEN))}")
        return names
