"""The stages of Bonawitz et al. 2017, Figure 4, as states of the two machines."""

from __future__ import annotations

from enum import Enum

from dicom_node.core.errors import ProtocolError

from .messages import Message


class Stage(Enum):
    """Where a machine stands.

    A client's stage is that of the last message it sent; the server's is that of the messages it collects.
    """

    SETUP = "setup"
    ADVERTISE_KEYS = "AdvertiseKeys"
    SHARE_KEYS = "ShareKeys"
    INPUT = "input"  # a client alone: it holds its peers' shares, and its own update may come
    MASKED_INPUT_COLLECTION = "MaskedInputCollection"
    CONSISTENCY_CHECK = "ConsistencyCheck"
    UNMASKING = "Unmasking"  # the server alone: a client that has given its shares is done
    DONE = "done"
    ABORTED = "aborted"


OVER = frozenset({Stage.DONE, Stage.ABORTED})


def out_of_order(kind: type[Message], stage: Stage) -> ProtocolError:
    """Make the error for a message that is not legal now."""
    return ProtocolError(f"a {kind.__name__} came in stage {stage.value}", code="out-of-order")


def wrong_round() -> ProtocolError:
    """Make the error for a frame of other terms."""
    return ProtocolError("a message of another run or round came; it was not used", code="wrong-round")
