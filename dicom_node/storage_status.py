"""What an answer to a store request means for the sender (PS3.4 Table B.2-1, PS3.7 Annex C, PS3.18 Table I.2-2).

C-STORE statuses and the Failure Reason (0008,1197) of STOW-RS use the same numbers, so both senders judge them here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .core.errors import Refused, Unavailable

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122

#: A destination that says "duplicate" holds the instance: our UIDs belong to one content, so it was delivered earlier.
#: The standard does not list 0x0111 for C-STORE; archives answer it all the same.
_WARNINGS = {
    0x0001: "requested optional attributes are not supported",
    0x0107: "some attributes were not kept",
    0x0111: "the destination already held it",
    0x0116: "an attribute value is out of range",
    0xB000: "data elements were coerced",
    0xB006: "data elements were discarded",
    0xB007: "the data set does not match its SOP class",
}
_FINAL = {
    0x0117: "the instance is invalid",
    SOP_CLASS_NOT_SUPPORTED: "the SOP class is not supported",
    0x0124: "this node is not authorised to store",
    0x0211: "the operation is not recognised",
    0x0212: "a parameter is mistyped",
}


@dataclass(frozen=True)
class Receipt:
    """A destination's word that it holds an instance.

    Attributes
    ----------
    status : int
        Its status, `SUCCESS` or a warning.
    warning : str
        What the warning says; empty on plain success.
    sop_class_uid, sop_instance_uid : str
        As what the instance is kept there; not the original's when it was sent as another SOP class.
    """

    status: int
    warning: str
    sop_class_uid: str
    sop_instance_uid: str


def judge(status: int, destination: str) -> str:
    """Tell delivered, try-again and never apart.

    Parameters
    ----------
    status : int
        Status of a C-STORE response, or Failure Reason of a STOW-RS response.
    destination : str
        Name of the destination, for the message.

    Returns
    -------
    str
        The warning's meaning; empty on plain success.

    Raises
    ------
    Refused
        The destination will never take this instance: 0xA9xx, 0xCxxx, 0x0117, 0x0122, 0x0124, 0x0211, 0x0212.
    Unavailable
        It may take it later: 0xA7xx (out of resources), 0x0110 (processing failure) and statuses unknown to the
        standard.
    """
    if status == SUCCESS:
        return ""
    if status in _WARNINGS or 0xB000 <= status <= 0xBFFF:
        return _WARNINGS.get(status, "a warning of the destination's own")
    if status in _FINAL:
        reason = _FINAL[status]
    elif 0xA900 <= status <= 0xA9FF:
        reason = "the data set does not match its SOP class"
    elif 0xC000 <= status <= 0xCFFF:
        reason = "the destination cannot understand it"
    else:
        what = "is out of resources" if 0xA700 <= status <= 0xA7FF else "failed to store"
        raise Unavailable(f"destination {destination} {what} (status 0x{status:04X})", code="destination-failed")
    raise Refused(
        f"destination {destination} refused the report for good: {reason} (status 0x{status:04X})",
        code="destination-refused",
    )
