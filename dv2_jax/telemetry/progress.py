"""What a person sees while a run works: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def duration(seconds: float) -> str:
    """``4.2 s``, ``3:07`` (minutes:seconds) or ``2:03:07``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figure(value: float | int | str) -> str:
    """A number as it is read: ``12,345``, ``0.713``, ``1.2e-05``; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Display:
    """The run's one place for output to people; ``enabled=False`` on processes other than 0.

    On a terminal it draws rich bars and prints lines above them. Anywhere else (a file, a pipe, CI) it prints lines:
    one per step, and one per ``interval_s`` seconds of a long part.
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
        """A line that stays."""
        if not self._enabled:
            return
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    @contextmanager
    def track(self, title: str, total: int, *, done: int = 0, unit: str = "") -> Iterator[Part]:
        """A bar from ``done`` to ``total`` for the block. Parts may lie within parts."""
        part = Part(self, title, total, done, unit)
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

    def _moved(self, part: Part) -> None:
        if self._bars is not None:
            self._bars.update(part.task, completed=part.done)
        elif self._enabled and time.monotonic() - part.told >= self._interval_s:
            part.told = time.monotonic()
            self.line(f"{part.title}: {part.done:,}/{part.total:,} {part.unit}".rstrip() + f", {part.time_left()} left")


class Part:
    """Work that is counted; made by ``Display.track``."""

    def __init__(self, display: Display, title: str, total: int, done: int, unit: str):
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.task = None
        self.told = self._started = time.monotonic()
        self._first = done  # what an earlier run did says nothing about this one's speed
        self._display = display

    def advance(self, count: int = 1) -> None:
        self.done += count
        self._display._moved(self)

    def step(self, values: Mapping[str, float | int | str]) -> None:
        """One step is done: advances, and prints its line, ``RL 7/40  reward 0.61  ...  3:10 left``.

        A name may carry its unit behind a comma: ``{"speed, tokens/s": 1234.0}`` reads ``speed 1,234 tokens/s``.
        """
        self.done += 1
        shown = []
        for name, value in values.items():
            label, _, unit = name.partition(", ")
            shown.append(f"{label} {figure(value)}{' ' + unit if unit else ''}")
        width = len(str(self.total))
        self._display.line(
            "  ".join([f"{self.title} {self.done:>{width}}/{self.total}", *shown, f"{self.time_left()} left"])
        )
        self.told = time.monotonic()
        self._display._moved(self)

    def time_left(self) -> str:
        """From this run's mean speed; ``?`` before the first unit of work."""
        if self.done <= self._first:
            return "?"
        spent = time.monotonic() - self._started
        return duration(spent / (self.done - self._first) * max(0, self.total - self.done))
