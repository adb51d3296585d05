"""Shows the progress of a run: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def duration(seconds: float) -> str:
    """Formats a duration as `4.2 s`, `3:07` (minutes:seconds) or `2:03:07`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_number(value: float | int | str) -> str:
    """Formats a number for people: `12,345`, `0.713`, `1.2e-05`; returns text unchanged."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Display:
    """Prints the run's progress and messages; `enabled=False` on processes other than 0.

    On a terminal it draws rich bars and prints lines above them. Elsewhere (a file, a pipe, CI) it prints lines: one
    per step, and one per `interval_s` seconds of a long task.
    """

    def __init__(self, stream: TextIO | None = None, *, enabled: bool = True, interval_s: float = 15.0):
        self._stream = stream or sys.stdout
        self._enabled = enabled
        self._interval_s = interval_s
        self._bars: Progress | None = None
        self._depth = 0
        self.interactive = enabled and self._stream.isatty()
        if self.interactive:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
                redirect_stdout=self._stream is sys.stdout,
            )

    def line(self, text: str) -> None:
        """Prints a line that is not overwritten by the bars."""
        if not self._enabled:
            return
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    @contextmanager
    def track(self, title: str, total: int, *, done: int = 0, unit: str = "") -> Iterator[ProgressTask]:
        """Shows a bar from `done` to `total` for the duration of the block. Tasks may be nested."""
        part = ProgressTask(self, title, total, done, unit)
        if self._bars is not None:
            if self._depth == 0:
                self._bars.start()
            part.task = self._bars.add_task(title, total=total, completed=done, unit=unit)
        self._depth += 1
        try:
            yield part
        finally:
            self._depth -= 1
            if self._bars is not None:
                self._bars.remove_task(part.task)
                if self._depth == 0:
                    self._bars.stop()

    def _moved(self, part: ProgressTask) -> None:
        if self._bars is not None:
            self._bars.update(part.task, completed=part.done, total=part.total)
        elif self._enabled and time.monotonic() - part.last_printed >= self._interval_s:
            part.last_printed = time.monotonic()
            self.line(f"{part.title}: {part.done:,}/{part.total:,} {part.unit}".rstrip() + f", {part.time_left()} left")


class ProgressTask:
    """A task with a known amount of work; created by `Display.track`."""

    def __init__(self, display: Display, title: str, total: int, done: int, unit: str):
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.task = None
        self.last_printed = self._started = time.monotonic()
        self._first = done  # work of an earlier run does not count for the speed
        self._display = display

    def advance(self, count: int = 1) -> None:
        """Counts `count` more units of work as done."""
        self.done += count
        self._display._moved(self)

    def set_total(self, total: int) -> None:
        """Sets the amount of work, which may be an estimate that grows."""
        self.total = total

    def step(self, values: Mapping[str, float | int | str]) -> None:
        """Advances by one step and prints its line, `RL 7/40  reward 0.61  ...  3:10 left`.

        A name may end with a comma and a unit: `{"speed, tokens/s": 1234.0}` prints `speed 1,234 tokens/s`.
        """
        self.done += 1
        shown = []
        for name, value in values.items():
            label, _, unit = name.partition(", ")
            shown.append(f"{label} {format_number(value)}{' ' + unit if unit else ''}")
        width = len(str(self.total))
        self._display.line(
            "  ".join([f"{self.title} {self.done:>{width}}/{self.total}", *shown, f"{self.time_left()} left"])
        )
        self.last_printed = time.monotonic()
        self._display._moved(self)

    def time_left(self) -> str:
        """Estimates the time left from this run's mean speed; `?` before the first unit of work."""
        if self.done <= self._first:
            return "?"
        spent = time.monotonic() - self._started
        return duration(spent / (self.done - self._first) * max(0, self.total - self.done))
