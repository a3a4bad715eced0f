"""Log lines of every process on standard error: one JSON object a line, or text for a terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import lru_cache
from typing import Any

from service.observability.lines import Handler, LineWriter
from service.settings import Settings

#: Encodes to ASCII only, since some readers take U+2028 or U+0085 for a line end, and terminals obey C1 controls.
_encode = json.JSONEncoder().encode


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process


class JsonFormatter(_Formatter):
    """One JSON object a line. The fields of a request's line stand beside the message, not nested."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.created % 1 * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
            **_request_fields(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return _encode(document)


class TextFormatter(_Formatter):
    """Text for a terminal. No line can be forged: control characters are escaped, a traceback's lines indented."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        message = _printable(record.getMessage())
        fields = "".join(f" {name}={value}" for name, value in _request_fields(record).items())
        line = f"{clock} {record.levelname.lower():7} {self._process:10} {message}{fields}"
        if not record.exc_info:
            return line
        trace = self.formatException(record.exc_info).splitlines()
        return "\n".join([line, *(f"  | {_printable(entry)}" for entry in trace)])


def configure(settings: Settings, process: str) -> None:
    """Sends this process's log to standard error, in the format and from the level of the settings."""
    handler = _handler()
    json_lines = settings.resolved_log_format == "json"
    handler.setFormatter(JsonFormatter(process) if json_lines else TextFormatter(process))
    # No format shows function, thread or process, so logging need not determine them for each record. These are the
    # switches of its documentation ("Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # uvicorn logs the start and end of every front-end at level info; the supervisor logs them once for all.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    # Its warnings are about clients' bodies; the clients get an answer that says the same.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def flush() -> None:
    """Writes lines that wait for the reader of standard error. To be called from time to time."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _handler() -> logging.Handler:
    try:
        return Handler(LineWriter(sys.stderr.fileno()))
    except (OSError, ValueError, AttributeError):  # no descriptor, as under a test's capture
        return logging.StreamHandler()


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _request_fields(record: logging.LogRecord) -> dict[str, Any]:
    state = getattr(record, "request_state", None)
    if state is None:
        return {}
    fields: dict[str, Any] = {"request_id": state.id, "status": state.status}
    fields["duration_ms"] = round(1000 * getattr(record, "duration", 0.0), 3)
    for stage, seconds in state.stages.items():
        fields[f"{stage}_ms"] = round(1000 * seconds, 3)
    if state.batch is not None:
        fields["batch"] = state.batch
    if state.trace is not None:
        fields["trace_id"] = state.trace.id
    return fields
