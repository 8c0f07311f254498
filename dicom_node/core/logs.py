"""JSON log lines whose fields are allow-listed, so that no patient's value can reach a log by accident.

A field that is not in `FIELDS` is dropped and its name reported under ``dropped``. Libraries' own messages may quote
data sets, so of them only the logger's name, the level and the place in the source are written.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog

from .errors import VeilRayError

#: Every field that a log line may carry. None can hold a patient's value: identifiers are database numbers or hashes.
FIELDS = (
    frozenset({"event", "level", "timestamp", "logger", "module", "service", "dropped", "version"})
    | {"job_id", "kind", "attempts", "study_id", "instance_id", "revision", "run_at", "state", "duration_s"}
    | {"audit_seq", "audit_head", "code", "message", "error", "at", "signal"}
    | {"ae_title", "address", "host", "port", "url", "path", "peer", "fingerprint", "destination"}
    | {"presentation_context", "status", "bytes", "count", "engine", "model", "bundle_id", "quota"}
)


def _named(service: str) -> structlog.typing.Processor:
    def add(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        fields["service"] = service
        return fields

    return add


def _only_allowed(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    unknown = sorted(set(fields) - FIELDS)
    for name in unknown:
        del fields[name]
    if unknown:
        fields["dropped"] = unknown
    return fields


def describe(error: BaseException) -> dict[str, str]:
    """Give the fields that describe `error` without quoting data.

    A `VeilRayError` is written by us and holds no patient data: its message is kept. Of any other exception only the
    class and the innermost place in the source are told.
    """
    fields = {"error": type(error).__name__, "at": _place(error.__traceback__)}
    if isinstance(error, VeilRayError):
        fields |= {"code": error.code, "message": str(error)}
    return fields


def _place(traceback: TracebackType | None) -> str:
    place = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


class _LibraryHandler(logging.Handler):
    """Turns a library's log record into one of our lines, without its text."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(level=logging.WARNING)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        line = {
            "event": "library-message",
            "level": record.levelname.lower(),
            "logger": record.name,
            "at": f"{record.filename}:{record.lineno}",
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        self._stream.write(json.dumps(line) + "\n")


def configure(service: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send this process's log lines to `stream` (standard error by default) as JSON, one object a line.

    Parameters
    ----------
    service : str
        Name of the process, e.g. ``dicom-node serve``; stands in each line.
    level : str
        Least level written: debug, info, warning or error.
    """
    out = stream or sys.stderr
    structlog.configure(
        processors=[
            _named(service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_allowed,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_LibraryHandler(out)], level=logging.WARNING, force=True)
    logging.captureWarnings(True)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one module."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger
