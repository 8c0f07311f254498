"""The Storage Service as SCP (PS3.4 Annex B): which contexts are taken, and one C-STORE from fragment to status."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from ..core import logs
from ..core.errors import RejectedInstance, VeilRayError
from ..incoming import Incoming
from ..part10 import SOP_CLASS_NOT_SUPPORTED
from ..store import Store

log = logs.get(__name__)
VERIFICATION = "1.2.840.10008.1.1"
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
_PLAIN = frozenset(AllTransferSyntaxes[:4])


def contexts(proposed: Sequence[PresentationContext]) -> list[PresentationContext]:
    """Return what is supported of a request's proposals: Verification and everything storage-like.

    Beyond the classes that are kept, every class is taken whose objects would come by C-STORE, so that its instances
    get a status and a recorded reason instead of a context result that no one at the sender ever sees. Any transfer
    syntax will do, as bytes are kept as they come; plain ones come first, then those that pydicom knows.
    """
    syntaxes: dict[str, list[str]] = {}
    for one in proposed:
        abstract = one.abstract_syntax
        known = abstract == VERIFICATION or uid_to_service_class(abstract) is StorageServiceClass
        if known or abstract not in UID_dictionary:
            syntaxes.setdefault(abstract, []).extend(one.transfer_syntax)
    return [
        build_context(abstract, sorted(found, key=lambda one: (one not in _PLAIN, one not in AllTransferSyntaxes)))
        for abstract, found in syntaxes.items()
    ]


def answer(event: Any) -> Dataset:
    """Handle pynetdicom's EVT_C_STORE: keep the data set, and return status and Error Comment for the sender."""
    request = event.request
    reception = request.DataSet
    if not isinstance(reception, Reception):  # a C-STORE without a data set
        uids = request.AffectedSOPClassUID, request.AffectedSOPInstanceUID
        reception = event.assoc.begin(*uids, event.context.context_id)
    response = Dataset()
    response.Status, comment = reception.finish()
    if comment:
        response.ErrorComment = comment.encode("ascii", "replace").decode()[:64].replace("\\", "/")
    return response


class Reception(io.BytesIO):
    """Takes one data set; an error of any kind waits until the last fragment and becomes the status.

    Parameters
    ----------
    context : PresentationContext
        What the request came under.
    sop_class_uid, sop_instance_uid : str
        As the request's command set names them.
    source : str
        The sender, as it stands in the records.
    studies : set of str
        Where the Study Instance UID is noted as soon as it is known.
    """

    def __init__(
        self,
        store: Store,
        context: PresentationContext,
        sop_class_uid: str,
        sop_instance_uid: str,
        source: str,
        studies: set[str],
    ) -> None:
        super().__init__()
        self._store = store
        self._sop_class_uid = sop_class_uid
        self._source = source
        self._studies = studies
        self._incoming: Incoming | None = None
        self._error: Exception | None = None
        self._study_known = False
        try:
            if sop_class_uid != context.abstract_syntax:
                raise RejectedInstance(
                    "the SOP class is not the one that the presentation context was accepted for",
                    status=SOP_CLASS_NOT_SUPPORTED,
                    code="sop-class",
                )
            self._incoming = store.begin(sop_class_uid, sop_instance_uid, str(context.transfer_syntax[0]))
        except Exception as error:
            self._error = error

    def write(self, fragment: Any) -> int:
        """Take a fragment; after an error, fragments are read past."""
        if self._incoming is not None and self._error is None:
            try:
                self._incoming.write(fragment)
                if not self._study_known and (identity := self._incoming.early_identity()) is not None:
                    self._study_known = True
                    self._studies.add(identity.study_instance_uid)
            except Exception as error:
                self._error = error
                self.discard()
        return len(fragment)

    def finish(self) -> tuple[int, str]:
        """Keep the data set and return status and Error Comment for the sender."""
        if self._incoming is not None and self._error is None:
            try:
                self._studies.add(self._incoming.identity().study_instance_uid)
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
