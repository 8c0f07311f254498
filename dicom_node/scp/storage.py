"""The Storage Service as SCP (PS3.4 Annex B): one C-STORE request, from its first fragment to its status."""

from __future__ import annotations

from ..core import logs
from ..core.errors import RejectedInstance, VeilRayError
from ..incoming import Incoming
from ..part10 import SOP_CLASS_NOT_SUPPORTED
from ..store import Store
from .negotiation import Context

log = logs.get(__name__)
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


class Reception:
    """Takes one data set; an error of any kind waits until the last fragment and becomes the status.

    Parameters
    ----------
    context : Context
        The presentation context that the request came under.
    sop_class_uid, sop_instance_uid : str
        As the request's command set names them.
    source : str
        The sender, as it stands in the records.
    """

    def __init__(self, store: Store, context: Context, sop_class_uid: str, sop_instance_uid: str, source: str) -> None:
        self._store = store
        self._sop_class_uid = sop_class_uid
        self._source = source
        self._incoming: Incoming | None = None
        self._error: Exception | None = None
        self.study_instance_uid: str | None = None
        try:
            if sop_class_uid != context.abstract_syntax:
                raise RejectedInstance(
                    "the SOP class is not the one that the presentation context was accepted for",
                    status=SOP_CLASS_NOT_SUPPORTED,
                    code="sop-class",
                )
            self._incoming = store.begin(sop_class_uid, sop_instance_uid, context.transfer_syntax)
        except Exception as error:
            self._error = error

    def write(self, fragment: memoryview) -> None:
        """Take a fragment; after an error, fragments are read past."""
        if self._error is not None or self._incoming is None:
            return
        try:
            self._incoming.write(fragment)
            if self.study_instance_uid is None and (identity := self._incoming.early_identity()) is not None:
                self.study_instance_uid = identity.study_instance_uid
        except Exception as error:
            self._error = error
            self.discard()

    def finish(self) -> tuple[int, str]:
        """Keep the data set and return status and Error Comment for the sender."""
        if self._error is None and self._incoming is not None:
            try:
                self.study_instance_uid = self._incoming.identity().study_instance_uid
                self._store.receive(self._incoming, self._source)
            except Exception as error:
                self._error = error
                self.discard()
        return (SUCCESS, "") if self._error is None else self._explain(self._error)

    def discard(self) -> None:
        """Drop what has arrived."""
        if self._incoming is not None:
            self._incoming.discard()

    def _explain(self, error: Exception) -> tuple[int, str]:
        if isinstance(error, RejectedInstance):
            try:
                self._store.reject(error, self._sop_class_uid, self._source)
            except Exception as unrecorded:  # a rejection that nobody can read later is not given
                error = unrecorded
            else:
                log.info("instance-rejected", peer=self._source, status=f"0x{error.status:04X}", code=error.code)
                return error.status, str(error)
        # Whatever else went wrong is on our side: the sender should keep the instance and try again.
        log.error("instance-not-stored", peer=self._source, status="0xA700", **logs.describe(error))
        return OUT_OF_RESOURCES, str(error) if isinstance(error, VeilRayError) else "internal error: see the log"
