"""Structured logs on stderr: one JSON object a line. They name what happened and how long it took, and never
hold code, output, queries, pictures, tokens or ids that a caller chose."""

from __future__ import annotations

import json
import logging
import sys
import time

_LOG = logging.getLogger("tools_service")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True, default=str)


def start(level: str) -> None:
    """Sends this package's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(level.upper())
    _LOG.propagate = False


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """``fields`` are numbers, statuses and names that the operator chose."""
    _LOG.log(level, name, extra={"fields": fields})
