"""Benchmark of the tools service against Jupyter kernels, alternated in one run on the same machine.

    python -m benchmarks.tools                        # all measurements: about ten minutes on two cores
    python -m benchmarks.tools --rounds 2 --sessions 4 --live 8

Prints a table of medians and writes every sample to `--output`. Both sides import the same libraries and
run the same cells. A session is ready when its first cell, which imports the libraries, has been answered;
a kernel likewise, measured from the start of its process. The latency of a cell ends when its complete output has
arrived and been decoded.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
import skimage.data
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.tools_sides import IMPORTS, KernelSide, ServiceSide
from tools_service.client import start_local_service

_CROP = 1000  # pixels a side: one megapixel


@dataclass
class Measure:
    """Samples of one quantity on both sides, compared by their medians."""

    name: str
    unit: str
    higher_is_better: bool = False
    limit: float | None = None  # target: bound of the service's median
    factor: float | None = None  # target: minimum ratio to the kernels
    service: list[float] = field(default_factory=list)
    kernels: list[float] = field(default_factory=list)

    def ratio(self) -> float | None:
        """Returns how many times better the service is; None without samples of both sides."""
        if not self.service or not self.kernels:
            return None
        ours, theirs = statistics.median(self.service), statistics.median(self.kernels)
        return ours / theirs if self.higher_is_better else theirs / ours

    def meets_targets(self) -> bool | None:
        """Returns True if all targets are met; None if there are none."""
        checks = []
        if self.limit is not None and self.service:
            ours = statistics.median(self.service)
            checks.append(ours >= self.limit if self.higher_is_better else ours <= self.limit)
        if self.factor is not None and (ratio := self.ratio()) is not None:
            checks.append(ratio >= self.factor)
        return all(checks) if checks else None


def _timed(action: Callable[[], object]) -> tuple[float, object]:
    """Returns the wall time in ms and the result of `action`."""
    start = time.perf_counter()
    value = action()
    return (time.perf_counter() - start) * 1e3, value


def photograph_jpeg() -> bytes:
    """Returns a photograph of 1600 × 1200 pixels as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).resize((1600, 1200), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def ready_and_idle(service: ServiceSide, kernels: KernelSide, rounds: int, opens: int) -> list[Measure]:
    ready = Measure("session ready with imports", "ms", limit=15.0, factor=50.0)
    idle = Measure("private memory of an idle session", "MB", limit=5.0)
    cpu = Measure("processor time of a session's start", "ms")
    for _ in track(range(rounds), "sessions and kernels", transient=True):
        sessions, before = [], service.cpu_ms()
        for _ in range(opens):
            elapsed, session = _timed(service.open)
            ready.service.append(elapsed)
            sessions.append(session)
            time.sleep(0.1)  # lets the manager replenish its warm pool
        cpu.service.append((service.cpu_ms() - before) / opens)
        before = kernels.cpu_ms()
        elapsed, kernel = _timed(kernels.open)
        ready.kernels.append(elapsed)
        cpu.kernels.append(kernels.cpu_ms() - before)
        idle.service.append(service.private_mb(sessions))
        idle.kernels.append(kernels.private_mb([kernel]))
    return [ready, cpu, idle]


def warm_cells(service: ServiceSide, kernels: KernelSide, rounds: int, cells: int) -> list[Measure]:
    warm = Measure("warm cell, one after the other", "ms", limit=2.0, factor=3.0)
    cpu = Measure("processor time of a warm cell", "ms")
    session, kernel = service.open(), kernels.open()
    for side, handle in ((service, session), (kernels, kernel)):
        side.run(handle, "x = 0")
        for _ in range(20):
            side.run(handle, "x += 0")
    for _ in track(range(rounds), "warm cells", transient=True):
        for side, handle, times, work in (
            (service, session, warm.service, cpu.service),
            (kernels, kernel, warm.kernels, cpu.kernels),
        ):
            before = side.cpu_ms()
            times += [_timed(lambda side=side, handle=handle: side.run(handle, "x += 1"))[0] for _ in range(cells)]
            work.append((side.cpu_ms() - before) / cells)
    for side, handle in ((service, session), (kernels, kernel)):
        assert side.run(handle, "print(x)").stdout == f"{rounds * cells}\n", side.name
        side.close([handle])
    return [warm, cpu]


def many_sessions(service: ServiceSide, kernels: KernelSide, count: int, rounds: int, cells: int) -> list[Measure]:
    rate = Measure(f"cells from {count} sessions at once", "cells/s", higher_is_better=True)
    sessions, started = [service.open() for _ in range(count)], kernels.open_many(count)
    codes = [["y = sum(i * i for i in range(100))\nprint(y)"] * cells] * count
    for _ in track(range(rounds), f"{count} sessions", transient=True):
        for side, handles, samples in ((service, sessions, rate.service), (kernels, started, rate.kernels)):
            elapsed, answers = _timed(lambda side=side, handles=handles: side.run_all(handles, codes))
            assert [a.stdout for a in answers] == ["328350\n"] * (count * cells), side.name
            samples.append(count * cells / elapsed * 1e3)
    service.close(sessions)
    kernels.close(started)
    return [rate]


def crops(service: ServiceSide, kernels: KernelSide, count: int, rounds: int, cells: int) -> list[Measure]:
    rate = Measure("1-megapixel crop and return", "cells/s", higher_is_better=True)
    cpu = Measure("processor time of a crop and return", "ms")
    photograph = photograph_jpeg()
    sessions = [f"crops-{i}" for i in range(count)]
    started = kernels.open_many(count)
    for side, handles in ((service, sessions), (kernels, started)):
        for handle in handles:
            side.bind(handle, photograph)
    codes = [
        [
            f"image_1.crop(({x}, {y}, {x + _CROP}, {y + _CROP}))"
            for x, y in ((i * 37 % 600, (i + s) * 11 % 200) for i in range(cells))
        ]
        for s in range(count)
    ]
    for _ in track(range(rounds), "crops", transient=True):
        for side, handles, rates, work in (
            (service, sessions, rate.service, cpu.service),
            (kernels, started, rate.kernels, cpu.kernels),
        ):
            before = side.cpu_ms()
            elapsed, answers = _timed(lambda side=side, handles=handles: side.run_all(handles, codes))
            work.append((side.cpu_ms() - before) / (count * cells))
            rates.append(count * cells / elapsed * 1e3)
            assert all(Image.open(io.BytesIO(a.images[0])).size == (_CROP, _CROP) for a in answers), side.name
    service.close(sessions)
    kernels.close(started)
    return [rate, cpu]


def live(service: ServiceSide, count: int, kernel_mb: float) -> list[Measure]:
    """Measures many live sessions. The memory of as many kernels is extrapolated from one, as they would not fit."""
    opened = Measure(f"{count} sessions opened, each", "ms")
    answered = Measure(f"a cell among {count} live sessions", "ms")
    memory = Measure(f"private memory of {count} live sessions", "GB")
    sessions = []
    for _ in track(range(count), "live sessions", transient=True):
        elapsed, session = _timed(service.open)
        opened.service.append(elapsed)
        sessions.append(session)
    for i in track(range(2 * count), "cells among them", transient=True):
        name = sessions[i * 7919 % count]
        answered.service.append(_timed(lambda name=name: service.run(name, "x = 1"))[0])
    memory.service.append(service.private_mb(sessions) * count / 1e3)
    memory.kernels.append(kernel_mb * count / 1e3)
    return [opened, answered, memory]


def show(measures: Sequence[Measure], title: str) -> None:
    table = Table(title=title)
    for name in ("median of", "unit", "tools service", "Jupyter kernels", "times better", "target"):
        table.add_column(name, justify="left" if name in ("median of", "unit") else "right")
    for m in measures:
        wanted = " and ".join(
            text for text in (
                f"{'≥' if m.higher_is_better else '≤'} {m.limit:g}" if m.limit is not None else "",
                f"≥ {m.factor:g}×" if m.factor is not None else "",
            ) if text
        )  # fmt: skip
        meets_targets = m.meets_targets()
        table.add_row(
            m.name, m.unit, *(f"{statistics.median(s):,.4g}" if s else "" for s in (m.service, m.kernels)),
            f"{ratio:.3g}" if (ratio := m.ratio()) is not None else "",
            "" if meets_targets is None else f"{wanted}: {'met' if meets_targets else 'missed'}",
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tools", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="alternations of single sessions and of warm cells")
    parser.add_argument("--opens", type=int, default=5, help="sessions opened for every kernel")
    parser.add_argument("--cells", type=int, default=50, help="warm cells a round")
    parser.add_argument("--sessions", type=int, default=64, help="sessions, and kernels, that run cells at once")
    parser.add_argument("--live", type=int, default=500, help="sessions alive at once")
    parser.add_argument("--tier", default="root", help="strongest confinement that the service may use")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/tools.json"))
    arguments = parser.parse_args()
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory() as folder:
        service_arguments = ["--tier", arguments.tier, "--max-sessions", str(arguments.live + arguments.sessions + 64)]
        running = start_local_service(log_path=Path(folder) / "log.txt", extra_args=service_arguments)
        service, kernels = ServiceSide(running), KernelSide()
        try:
            several = max(2, arguments.rounds // 4)
            measures += ready_and_idle(service, kernels, arguments.rounds, arguments.opens)
            measures += warm_cells(service, kernels, arguments.rounds, arguments.cells)
            measures += crops(service, kernels, min(8, arguments.sessions), several, 8)
            measures += many_sessions(service, kernels, arguments.sessions, several, 8)
            measures += live(service, arguments.live, statistics.median(measures[2].kernels))
        finally:
            service.stop()
            kernels.stop()
            running.stop()
    machine = {
        "cores": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "load": os.getloadavg(),
        "python": platform.python_version(), "kernel": platform.release(), "service": list(running.banner),
        "versions": {name: version(name) for name in ("grpcio", "ipykernel", "jupyter_client")}, "imports": IMPORTS,
        "command": sys.argv[1:],
    }  # fmt: skip
    show(measures, f"{running.banner[0]}; {machine['cores']} cores, load {machine['load'][0]:.1f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    results = [asdict(m) | {"ratio": m.ratio(), "holds": m.meets_targets()} for m in measures]
    arguments.output.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(f"every sample: {arguments.output}")


if __name__ == "__main__":
    main()
