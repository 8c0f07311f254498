"""No value that is not on the allow-list reaches a log line, whoever logs it."""

from __future__ import annotations

import io
import json
import logging
import warnings

import pytest

from dicom_node.core import logs
from dicom_node.core.errors import Refused


@pytest.fixture
def stream():
    out = io.StringIO()
    logs.configure("test", stream=out)
    yield out
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_unlisted_field_is_dropped_and_named(stream: io.StringIO) -> None:
    logs.get("x").info("instance-received", patient_name="Doe^Jane", job_id=7)
    assert "Doe" not in stream.getvalue()
    (line,) = lines(stream)
    assert line["dropped"] == ["patient_name"]
    assert (line["event"], line["job_id"], line["service"]) == ("instance-received", 7, "test")


def test_a_librarys_text_never_reaches_the_log(stream: io.StringIO) -> None:
    logging.getLogger("pydicom").warning("Invalid value for VR PN: %s", "Doe^Jane")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Doe^Jane is not a valid name", stacklevel=1)
    assert "Doe" not in stream.getvalue()
    assert [line["logger"] for line in lines(stream)] == ["pydicom", "py.warnings"]


def test_a_foreign_exception_is_told_by_class_and_place_and_ours_by_its_message(stream: io.StringIO) -> None:
    try:
        raise ValueError("Doe^Jane")
    except ValueError as error:
        logs.get("x").error("fault", **logs.describe(error))
    logs.get("x").error("fault", **logs.describe(Refused("the view is lateral", code="view")))
    assert "Doe" not in stream.getvalue()
    foreign, ours = lines(stream)
    assert foreign["error"] == "ValueError"
    assert foreign["at"].startswith("test_logs.py:")
    assert (ours["code"], ours["message"]) == ("view", "the view is lateral")
