"""Association negotiation as acceptor (PS3.8 Section 7.1, PS3.7 Annex D): which contexts are taken, and the answer.

pynetdicom reads and writes the PDUs. Beyond the classes that are kept, every storage-like class is accepted, so that
its instances get a status and a recorded reason instead of a context result that no one at the sender ever sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import AllTransferSyntaxes
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from ..core.errors import ProtocolError
from ..part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

VERIFICATION = "1.2.840.10008.1.1"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_ACCEPTED, _NO_SUCH_ABSTRACT_SYNTAX = 0x00, 0x03


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True)
class Request:
    """What an A-ASSOCIATE-RQ asks for."""

    calling: str
    called: str
    application_context: str
    protocol_version: int
    maximum_length: int
    proposed: tuple[tuple[int, str, tuple[str, ...]], ...]


def decode(pdu: bytes) -> Request:
    """Read an A-ASSOCIATE-RQ PDU.

    Raises
    ------
    ProtocolError
        It is not one.
    """
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(pdu)
        primitive = request.to_primitive()
        proposed = tuple(
            (int(one.context_id), str(one.abstract_syntax), tuple(str(syntax) for syntax in one.transfer_syntax))
            for one in primitive.presentation_context_definition_list
        )
        return Request(
            calling=str(primitive.calling_ae_title).strip(),
            called=str(primitive.called_ae_title).strip(),
            application_context=str(primitive.application_context_name),
            protocol_version=int(request.protocol_version),
            maximum_length=int(primitive.maximum_length_received or 0),
            proposed=proposed,
        )
    except Exception as error:  # the decoder raises whatever it stumbles on
        raise ProtocolError("the association request cannot be read") from error


def negotiate(request: Request) -> dict[int, Context]:
    """Choose the contexts to accept: Verification and everything storage-like.

    The first transfer syntax that pydicom knows is taken, else the sender's first: bytes are kept as they come.
    """
    accepted = {}
    for context_id, abstract, syntaxes in request.proposed:
        if syntaxes and (abstract == VERIFICATION or storage_like(abstract)):
            chosen = next((syntax for syntax in syntaxes if syntax in AllTransferSyntaxes), syntaxes[0])
            accepted[context_id] = Context(abstract, chosen)
    return accepted


def storage_like(abstract_syntax: str) -> bool:
    """Tell whether objects of this class would come by C-STORE: storage, private and unknown classes."""
    return abstract_syntax not in UID_dictionary or uid_to_service_class(abstract_syntax) is StorageServiceClass


def accept(request: Request, accepted: dict[int, Context], maximum_pdu_size: int) -> bytes:
    """Write the A-ASSOCIATE-AC PDU."""
    answer = A_ASSOCIATE()
    answer.application_context_name = APPLICATION_CONTEXT
    answer.calling_ae_title = request.calling
    answer.called_ae_title = request.called
    answer.result = 0x00
    answer.result_source = 0x01
    results = []
    for context_id, abstract, syntaxes in request.proposed:
        result = PresentationContext()
        result.context_id = context_id
        result.abstract_syntax = abstract
        chosen = accepted.get(context_id)
        result.result = _NO_SUCH_ABSTRACT_SYNTAX if chosen is None else _ACCEPTED
        result.transfer_syntax = [syntaxes[0] if chosen is None else chosen.transfer_syntax] if syntaxes else []
        results.append(result)
    answer.presentation_context_definition_results_list = results
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    version = ImplementationVersionNameNotification()
    length.maximum_length_received = maximum_pdu_size
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    answer.user_information = [length, implementation, version]
    return bytes(A_ASSOCIATE_AC(answer).encode())
