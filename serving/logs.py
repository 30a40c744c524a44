"""What the server writes of itself: lines for people, or JSON objects, one a line, for what collects them.

A request has a line where it ended in a fault of the server, and at level DEBUG always. No line holds an id of a user
or a POI, or a token; of an exception the log has its kind and the places in the code, as its message may hold anything.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from serving.observe import Answered

    ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

log = logging.getLogger("serving.requests")
FAULTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFormat(Enum):
    TEXT = "text"
    JSON = "json"


class LogLevel(Enum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


class JsonFormatter(logging.Formatter):
    """A record as a JSON object: time, level, logger, message, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, object] = getattr(record, "fields", {})
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info and record.exc_info[0] is not None:
            said["exception"], said["at"] = record.exc_info[0].__name__, _places(record.exc_info[2])
        return json.dumps(said, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A record as a line; of an exception a line more for its kind and each place."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # of what another formatter made of it
        said = super().format(record)
        record.exc_text = None
        return said

    def formatException(self, ei: ExceptionInfo) -> str:  # of logging
        kind, _, trace = ei
        return "\n".join([kind.__name__ if kind else "", *(f"  at {place}" for place in _places(trace))])


def _places(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]


def configure(form: LogFormat, level: LogLevel) -> None:
    """Have this process write its log to standard error, in this form. Other libraries say nothing below INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=max(logging.INFO, level_of(level)), handlers=[handler], force=True)
    logging.getLogger("serving").setLevel(level_of(level))
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # of instructions that it looked for and did not find


def level_of(level: LogLevel) -> int:
    return logging.getLevelNamesMapping()[level.name]


def write(answered: Answered) -> None:
    """The line of one request, if it is to have one."""
    level = logging.ERROR if answered.code in FAULTS else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    ms = {name: round(1000 * seconds, 2) for name, seconds in answered.stage_seconds().items()}
    fields = {
        "request": answered.request_id,
        "method": answered.method,
        "code": answered.code,
        "ms": round(1000 * answered.seconds, 2),
        "stages": ms,
        **answered.notes,
    }
    log.log(level, "%s %s in %.1f ms", answered.method, answered.code, fields["ms"], extra={"fields": fields})
