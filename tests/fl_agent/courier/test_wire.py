"""What the coordinator asks its NVFlare server survives the way, and nothing else is read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.core.errors import ProtocolError
from fl_agent.courier.nvflare.wire import LONGEST_S, WAIT, Question


@given(site=st.text(max_size=60), wait_s=st.floats(0, LONGEST_S), frame=st.binary())
def test_a_question_is_read_as_it_was_written(site: str, wait_s: float, frame: bytes):
    question = Question(site, wait_s, frame)
    assert Question.decode(question.encode()) == question


@given(length=st.integers(0, 11))
def test_a_cut_question_is_refused(length: int):
    with pytest.raises(ProtocolError) as caught:
        Question.decode(Question("abc", 1.0).encode()[:length])
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("wait_s", [-1.0, math.nan, math.inf, LONGEST_S * 2])
def test_a_wait_that_is_none_is_refused(wait_s: float):
    with pytest.raises(ProtocolError):
        Question.decode(b"\0" + WAIT.pack(wait_s))


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(ProtocolError):
        Question.decode(b"\1\xff" + WAIT.pack(1.0))
