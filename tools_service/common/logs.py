"""Structured logs on stderr: one JSON object per line, with the event and its duration.

They never hold code, output, queries, images, tokens or ids that a caller chose.
"""

from __future__ import annotations

import json
import logging
import sys
import time

_LOG = logging.getLogger("tools_service")


class _JsonFormatter(logging.Formatter):
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
    """Configures this package's logger to write to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(level.upper())
    _LOG.propagate = False


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Logs one event. `fields` may hold numbers, statuses and names that the operator chose, no caller data."""
    _LOG.log(level, name, extra={"fields": fields})
