"""Records named time spans on lanes as a Chrome/Perfetto trace (`timeline.json`).

Open the file at ui.perfetto.dev or chrome://tracing. Events are appended, so a killed run leaves a trace that both
viewers still open (they do not need the closing bracket), and a resumed run appends to the same file.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dv2_jax.files import atomic_write

_OPENING, _CLOSING = "[\n", "\n]\n"


class Spans:
    """Records spans from any thread. With `path=None` it only keeps the totals (processes other than 0)."""

    def __init__(self, path: str | Path | None, *, process: int = 0):
        self._lock = threading.Lock()
        self._process = process
        self._lanes: dict[str, int] = {}
        self._totals: dict[str, float] = {}
        self._file = _open_for_append(Path(path)) if path is not None else None
        self._separate = self._file is not None and self._file.tell() > len(_OPENING)

    @contextmanager
    def span(self, name: str, lane: str = "trainer", **details: Any) -> Iterator[None]:
        """Times the block. The viewer shows `details` (step, tokens, rows ...) with the span."""
        start = time.time()
        try:
            yield
        finally:
            self.add(name, start, time.time(), lane, **details)

    def add(self, name: str, start: float, end: float, lane: str = "trainer", **details: Any) -> None:
        """Adds a span that was timed elsewhere, e.g. by the tools service; `start` and `end` in seconds since the epoch."""
        event = {"ph": "X", "name": name, "cat": lane, "ts": _micro(start), "dur": _micro(end - start)}
        with self._lock:
            self._totals[name] = self._totals.get(name, 0.0) + end - start
            self._write(event, lane, details)

    def instant(self, name: str, lane: str = "trainer", **details: Any) -> None:
        """Adds an instant event: an interrupt, a recompilation, a restarted service."""
        with self._lock:
            self._write({"ph": "i", "s": "g", "name": name, "cat": lane, "ts": _micro(time.time())}, lane, details)

    def value(self, name: str, number: float) -> None:
        """Adds a point to a counter track, such as slots in use."""
        with self._lock:
            self._write({"ph": "C", "name": name, "ts": _micro(time.time())}, "", {"value": number})

    def take_totals(self) -> dict[str, float]:
        """Returns the seconds per span name since the last call, for the metrics of a step."""
        with self._lock:
            totals, self._totals = self._totals, {}
        return totals

    def flush(self) -> None:
        if self._file:
            self._file.flush()

    def close(self) -> None:
        """Writes the closing bracket and closes the file. Later spans only count for the totals."""
        with self._lock:
            if self._file:
                self._file.write(_CLOSING.encode())
                self._file.close()
                self._file = None

    def __enter__(self) -> Spans:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, event: dict[str, Any], lane: str, details: dict[str, Any]) -> None:
        if self._file is None:
            return
        if lane and lane not in self._lanes:
            self._lanes[lane] = len(self._lanes) + 1
            self._append({"ph": "M", "name": "thread_name", "args": {"name": lane}}, lane)
        self._append(event | ({"args": details} if details else {}), lane)

    def _append(self, event: dict[str, Any], lane: str) -> None:
        event = event | {"pid": self._process, "tid": self._lanes.get(lane, 0)}
        separator = ",\n" if self._separate else ""
        self._file.write((separator + json.dumps(event, default=str)).encode())
        self._separate = True


def read_timeline(path: str | Path) -> list[dict[str, Any]]:
    """Reads the events of a trace (one per line); stops at the incomplete last line of a killed run."""
    events = []
    for line in Path(path).read_text(errors="replace").splitlines():
        if line in ("[", "]", ""):
            continue
        try:
            events.append(json.loads(line.rstrip(",")))
        except json.JSONDecodeError:
            break
    return events


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)


def _open_for_append(path: Path) -> Any:
    """Opens the trace for appending after its last complete event."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_size < len(_OPENING):
        path.write_text(_OPENING)
    else:
        lines = [json.dumps(event) for event in read_timeline(path)]
        atomic_write(path, _OPENING + ",\n".join(lines))
    return open(path, "ab")
