"""Envelopes: what a site says of itself is a code, and nothing else of it reaches logs or records."""

from __future__ import annotations

import pytest

from fl_agent.learning.envelope import Kind, answer, read_answer

RUN = bytes(16)


def test_a_refusal_is_told_by_its_code():
    assert read_answer(answer(Kind.REFUSED, b"question", RUN, "too-few-patients"), b"question") == "too-few-patients"
    assert read_answer(answer(Kind.ACCEPTED, b"question", RUN), b"question") == ""


@pytest.mark.parametrize("text", ["", "Doe^Jane 1970", "<script>", "a\nb", "x" * 41, "-", "budget\n"])
def test_whatever_is_no_code_is_not_passed_on(text: str):
    assert read_answer(answer(Kind.REFUSED, b"question", RUN, text), b"question") == "refused"
