"""What the coordinator asks its NVFlare server over their Unix socket: who can be reached, or carry a frame to a site.

A question is the length of the site's name (1 byte), the name, how long to wait (8, IEEE 754 binary64, seconds) and the
frame; without a name it asks who can be reached. The answer is 1 and the site's frame, or 0 where the site gave none;
to the question without a name it is the names, one a line.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from dicom_node.core.errors import ProtocolError

HEAD: Final = struct.Struct(">B")
WAIT: Final = struct.Struct(">d")
#: Longest wait for a site, seconds: an hour.
LONGEST_S: Final = 3600.0
#: For a site to say that its agent is there, seconds.
PROBE_S: Final = 2.0
#: Names the socket that a relay serves (coordinator) or asks (hospital).
SOCKET: Final = "VEILRAY_COURIER_SOCKET"
#: Names the group that may ask at the socket of the coordinator's relay.
GROUP: Final = "VEILRAY_COURIER_GROUP"
#: The coordinator's name among the kits; no hospital's.
COORDINATOR: Final = "coordinator"
NOTHING: Final = b"\0"
CAME: Final = b"\1"


class Question(NamedTuple):
    """A frame for a site, or, with an empty name, the question who can be reached."""

    site: str
    wait_s: float
    frame: bytes = b""

    def encode(self) -> bytes:
        """Write the question."""
        name = self.site.encode()
        return HEAD.pack(len(name)) + name + WAIT.pack(self.wait_s) + self.frame

    @classmethod
    def decode(cls, data: bytes) -> Question:
        """Read a question.

        Raises
        ------
        ProtocolError
            It is cut, its name is no text, or its wait is not between 0 and `LONGEST_S` (``malformed``).
        """
        try:
            end = HEAD.size + data[0]
            site, (wait_s,) = data[HEAD.size : end].decode(), WAIT.unpack(data[end : end + WAIT.size])
        except (IndexError, UnicodeDecodeError, struct.error) as error:
            raise _malformed() from error
        if not 0 <= wait_s <= LONGEST_S:
            raise _malformed()
        return cls(site, wait_s, data[end + WAIT.size :])


def _malformed() -> ProtocolError:
    return ProtocolError("a question to the courier is malformed; update both programs", code="malformed")
