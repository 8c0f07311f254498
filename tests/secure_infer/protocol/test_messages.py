"""Every message reads back as it was written; anything else is refused before its content is looked at."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dicom_node.core.errors import IntegrityError, ProtocolError, Refused, Unavailable, VeilRayError
from secure_infer.protocol.messages import (
    KINDS,
    Audit,
    Audited,
    Bundle,
    Deal,
    Failure,
    Fetch,
    Half,
    Message,
    OfLayer,
    Open,
    Output,
    Prepared,
    Ready,
    TupleDeal,
    TupleFetch,
    TupleOpen,
    TupleReady,
    TupleSeed,
    decode,
    overhead,
    room,
)

NAME = b"B" * 16
SAMPLES: dict[type[Message], Message] = {
    type(one): one
    for one in (
        Deal(b"m" * 32, b"p" * 32, b"x" * 32, b"{}"),
        Bundle(NAME, b"s" * 80, b"signed"),
        Open(NAME, b"m" * 32, b"d" * 32, 1),
        Fetch(NAME, b"m" * 32, b"d" * 32, b"h" * 32),
        Half(NAME, b"w" * 32, b"signed"),
        Ready(NAME, 60, bytes(48)),
        Output(NAME, bytes(64)),
        Audit(NAME, b"e" * 32),
        Audited(NAME),
        Prepared(NAME),
        Failure(1, b"protocol"),
        TupleDeal(b"s" * 16, b"m" * 32, b"p" * 32, b"{}"),
        TupleFetch(NAME, b"m" * 32, b"d" * 32, b"h" * 32),
        TupleSeed(NAME, b"w" * 32),
        TupleOpen(NAME, b"m" * 32, b"z" * 32),
        TupleReady(NAME),
        *(kind(NAME, 7, bytes(16)) for kind in KINDS.values() if issubclass(kind, OfLayer)),
    )
}
#: As the table of the protocol's README has them.
FIXED = {
    "Deal": 97, "Bundle": 97, "Open": 82, "Fetch": 113, "Half": 49, "Ready": 21, "Output": 17, "Audit": 49,
    "Audited": 17, "Failure": 2, "Prepared": 17,
    "TupleDeal": 81, "TupleFetch": 113, "TupleSeed": 49, "TupleOpen": 81, "TupleReady": 17,
}  # fmt: skip


def test_there_is_a_sample_of_every_kind():
    assert set(SAMPLES) == set(KINDS.values())


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_message_reads_back_as_it_was_written_and_no_truncation_does(kind):
    frame = SAMPLES[kind].encode()
    assert decode(frame) == SAMPLES[kind]
    fixed = FIXED.get(kind.__name__, 19)
    assert overhead(kind) == fixed
    for length in range(fixed):
        with pytest.raises(ProtocolError):
            decode(frame[:length])
    if len(frame) == fixed:
        with pytest.raises(ProtocolError):
            decode(frame + b"\0")


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_field_of_the_wrong_length_is_never_sent(kind):
    first = dataclasses.fields(kind)[0].name
    if kind is not Failure:
        for wrong in (b"", b"short", bytes(33)):
            with pytest.raises(ValueError, match="wrong length"):
                dataclasses.replace(SAMPLES[kind], **{first: wrong}).encode()


@pytest.mark.parametrize("kind", [Ready, Output, *(kind for kind in KINDS.values() if issubclass(kind, OfLayer))])
def test_a_vector_is_read_where_it_arrived_and_begins_at_whole_words(kind):
    written = SAMPLES[kind].encode()
    frame = room(kind.KIND, len(written))
    frame[:] = written
    read = np.frombuffer(decode(frame).values, np.uint8)
    assert np.shares_memory(read, np.frombuffer(frame, np.uint8))
    assert read.ctypes.data % 16 == 0
    assert not read.flags.writeable


@pytest.mark.parametrize("frame", [b"", b"\0", b"\x7f", b"\xff" * 40])
def test_a_frame_of_no_known_kind_is_refused(frame):
    with pytest.raises(ProtocolError):
        decode(frame)


@pytest.mark.parametrize(("reaction", "code"), [(0, b"x"), (9, b"x"), (1, b""), (1, b"Bad code"), (1, b"a" * 49)])
def test_a_malformed_failure_is_a_protocol_error_and_its_text_is_not_repeated(reaction, code):
    error = Failure(reaction, code).error("party 1")
    assert isinstance(error, ProtocolError)
    assert error.code == "malformed-message"


@pytest.mark.parametrize("kind", [ProtocolError, Unavailable, Refused, IntegrityError])
def test_a_failure_arrives_as_the_same_class_and_code(kind: type[VeilRayError]):
    error = kind("a", code="b")
    found = Failure.of(error).error("party 1")
    assert (type(found), found.code) == (type(error), "b")
