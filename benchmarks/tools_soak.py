"""Soak test: many cells over many sessions, some hostile; no resource may grow and no other session may suffer.

    python -m benchmarks.tools_soak                                     # 20,000 cells, 500 sessions, 5 % hostile
    python -m benchmarks.tools_soak --cells 200 --sessions 10 --warm-cells 50 --latency-ratio 0

A baseline run measures the latency of well-behaved sessions. The same load is then repeated while hostile
sessions run the cells of `hostile_cells.py`. After every sample the hostile sessions are closed, and
processes, memory, descriptors, cgroups, mounts and folders of the idle service are counted. Every
well-behaved session counts its cells, which detects results that are lost, duplicated, swapped or from a
new namespace. Exits with 1 and a list of violations.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import processes
from benchmarks.hostile_cells import CELLS
from tools_service.client import ExecRequest, LocalService, Status, ToolResult, ToolsClient, start_local_service

_SIDE = 128  # pixels of a returned crop
# Each cell increments a counter; every other one also returns an incompressible crop, which fills the service's
# idempotency cache before the first half is over.
_COUNT = "n = globals().get('n', 0) + 1\nprint(n)"
_CROP = f"\nx = n * 37 % 500\ndisplay(image_1.crop((x, x, x + {_SIDE}, x + {_SIDE})))"
_HANG_TIMEOUT_S = 180.0
_SPARE_SESSIONS, _WARM = 8, 8


@dataclass
class LoadSample:
    """Latencies, statuses and violations of one period of load."""

    latencies: list[float] = field(default_factory=list)  # ms, of well-behaved cells
    hostile: Counter[str] = field(default_factory=Counter)  # statuses of hostile cells
    wrong: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Load:
    """Open-loop load: cells at a constant rate, at most one at a time per session.

    Latency is measured from the scheduled time, which avoids coordinated omission.
    """

    def __init__(
        self, service: LocalService, sessions: int, hostile: int, rate: float, hostile_at_once: int, seed: int
    ):
        self._service, self._client = service, ToolsClient(service.address)
        self._counts = {f"good-{i}": 0 for i in range(sessions - hostile)}
        self._hostile = [f"hostile-{i}" for i in range(hostile)]
        self._kinds = itertools.cycle(CELLS.items())
        self._rate, self._hostile_at_once = rate, hostile_at_once
        self._random, self._ids = random.Random(seed), itertools.count()
        noise = io.BytesIO()
        Image.frombytes("RGB", (640, 640), self._random.randbytes(3 * 640 * 640)).save(noise, "PNG", compress_level=0)
        self._image = noise.getvalue()

    def open_all(self) -> LoadSample:
        """Runs one cell in every well-behaved session."""
        return self._drive(list(self._counts))

    def run(self, cells: int, hostile_share: float) -> LoadSample:
        """Runs `cells` cells in random sessions, of which the share `hostile_share` is hostile."""
        bad = round(cells * hostile_share)
        order = [*self._random.choices(list(self._counts), k=cells - bad), *[""] * bad]
        self._random.shuffle(order)
        return self._drive(order)

    def _drive(self, order: list[str]) -> LoadSample:
        """Runs a cell in each session of `order`; an empty name means a hostile cell in any hostile session."""
        sample = LoadSample()
        started = heard = time.monotonic()
        coming = collections.deque((started + i / self._rate, name) for i, name in enumerate(order))
        late: collections.deque[tuple[float, str]] = collections.deque()  # due, but the session is still busy
        busy: dict[str, tuple[str, float, str]] = {}  # request id → session, when due, kind of hostile cell
        with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task("cells", total=len(order))
            while coming or late or busy:
                while coming and coming[0][0] <= time.monotonic():
                    late.append(coming.popleft())
                requests = self._startable_requests(late, busy)
                if requests:
                    self._client.submit(requests)
                pause = coming[0][0] - time.monotonic() if coming else 0.5
                for result in self._client.poll(min(0.5, max(0.001, pause))):
                    heard = time.monotonic()
                    self._record(result, busy, sample)
                    bar.advance(task)
                if busy and time.monotonic() - heard > _HANG_TIMEOUT_S:
                    sample.wrong.append(
                        f"no answer for {_HANG_TIMEOUT_S:g} s to {len(busy)} cells: {sorted(busy.values())[:5]}"
                    )
                    return sample
        return sample

    def _startable_requests(self, late: collections.deque, busy: dict) -> list[ExecRequest]:
        """Returns requests for the cells whose session is free; the others stay in `late`."""
        inside = {session for session, _, _ in busy.values()}
        hostile = sum(1 for _, _, kind in busy.values() if kind)
        requests, left = [], []
        for due, name in late:
            free = [h for h in self._hostile if h not in inside] if not name else [name] if name not in inside else []
            if not free or (not name and hostile >= self._hostile_at_once):
                left.append((due, name))
                continue
            session = self._random.choice(free)
            kind, code, timeout_s = "", _COUNT, 60.0
            if not name:
                hostile += 1
                (kind, code), timeout_s = next(self._kinds), 1.0
            elif self._counts[session] % 2:
                code += _CROP
            requests.append(self._send(session, due, code, timeout_s, kind, busy))
            inside.add(session)
        late.clear()
        late.extend(left)
        return requests

    def _send(self, session: str, due: float, code: str, timeout_s: float, kind: str, busy: dict) -> ExecRequest:
        request = ExecRequest(f"soak-{next(self._ids)}", session, code, timeout_s, () if kind else (self._image,))
        busy[request.request_id] = (session, due, kind)
        return request

    def _record(self, result: ToolResult, busy: dict, sample: LoadSample) -> None:
        if result.request_id not in busy:
            sample.wrong.append(f"an answer too many to {result.request_id}: {result.status.name}")
            return
        session, due, kind = busy.pop(result.request_id)
        if kind:
            sample.hostile[result.status.name] += 1
            if result.status in (Status.UNAVAILABLE, Status.REFUSED):
                sample.wrong.append(f"hostile cell ({kind}): {result.status.name}, {result.message}")
            return
        sample.latencies.append((time.monotonic() - due) * 1e3)
        self._counts[session] += 1
        expected = f"{self._counts[session]}\n"
        expected_images = 0 if self._counts[session] % 2 else 1
        if result.status is not Status.OK or result.stdout != expected or len(result.images) != expected_images:
            sample.wrong.append(
                f"{session}: {result.status.name}, {result.message or result.stderr[-200:]!r}, printed {result.stdout!r} for "
                f"{expected!r}, {len(result.images)} images for {expected_images}"
            )
            self._counts[session] = int(result.stdout) if result.stdout.strip().isdigit() else 0

    def settle(self) -> processes.Footprint:
        """Closes the hostile sessions, waits until the process count is stable and returns the footprint."""
        self._client.close_sessions(self._hostile)
        server = self._service.process.pid
        before = None
        for _ in range(40):
            time.sleep(0.5)
            now = len(processes.roles(server).others)
            if now == before:
                break
            before = now
        return processes.footprint(server)

    def counters(self) -> dict:
        return self._client.info()["counters"]

    def close(self) -> None:
        self._client.close()


def soak(service: LocalService, arguments: argparse.Namespace) -> tuple[list[str], dict]:
    """Returns the violations and the measurements."""
    hostile = max(1, round(arguments.sessions * arguments.hostile))
    load = Load(service, arguments.sessions, hostile, arguments.rate, arguments.hostile_at_once, arguments.seed)
    opened = load.open_all()
    baseline = load.run(arguments.warm_cells, 0.0)
    footprints = [load.settle()]
    attacked = LoadSample()
    num_samples = max(2, min(20, arguments.cells // 1000))
    started = time.monotonic()
    for number in range(num_samples):
        part = load.run(arguments.cells // num_samples, arguments.hostile)
        attacked.latencies += part.latencies
        attacked.hostile.update(part.hostile)
        attacked.wrong += part.wrong
        footprints.append(load.settle())
        print(f"{number + 1}/{num_samples}: p99 {part.percentile(0.99):.1f} ms; {_line(footprints[-1])}", flush=True)
        if part.wrong:
            break
    took = time.monotonic() - started
    numbers = {
        "quiet_p50_ms": baseline.percentile(0.5), "quiet_p99_ms": baseline.percentile(0.99), "loud_p50_ms": attacked.percentile(0.5), "loud_p99_ms": attacked.percentile(0.99),
        "cells_per_s": (len(attacked.latencies) + sum(attacked.hostile.values())) / took, "hostile": dict(attacked.hostile),
        "counters": load.counters(), "footprints": [dataclasses.asdict(p) for p in footprints],
    }  # fmt: skip
    load.close()
    wrong = opened.wrong + baseline.wrong + attacked.wrong
    # Bounded caches, such as the stored results, are full after the first half.
    middle = footprints[len(footprints) // 2]
    slots = arguments.sessions + _SPARE_SESSIONS + _WARM + 32
    for name, (before, after) in processes.growth(middle, footprints[-1], cgroups_at_most=2 * (slots + 2)).items():
        wrong.append(f"{name} grew from {before:.1f} to {after:.1f} over the second half")
    ratio = numbers["loud_p99_ms"] / numbers["quiet_p99_ms"]
    if arguments.latency_ratio and ratio > arguments.latency_ratio:
        wrong.append(
            f"p99 of well-behaved sessions is {ratio:.2f} times that of the baseline run; at most {arguments.latency_ratio:g}"
        )
    return wrong, numbers


def _line(p: processes.Footprint) -> str:
    return (
        f"{p.processes} processes, {p.descriptors} descriptors, {p.cgroups} cgroups, {p.mounts} mounts, {p.folders} folders, "
        f"MB: server {p.server_mb:.0f}, manager {p.manager_mb:.1f}, zygote {p.zygote_mb:.0f}, sessions {p.sessions_mb:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tools_soak", description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of cells, and of sessions")
    parser.add_argument("--warm-cells", type=int, default=2000, help="cells of the baseline run")
    parser.add_argument(
        "--rate", type=float, default=40.0, help="cells per second, in the baseline run and under attack"
    )
    parser.add_argument(
        "--hostile-at-once", type=int, default=4, help="hostile cells that run at the same time, at most"
    )
    parser.add_argument(
        "--latency-ratio", type=float, default=3.0, help="p99 under attack over p99 of the baseline run; 0: not checked"
    )
    parser.add_argument("--tier", default="root", help="strongest confinement that the service may use")
    parser.add_argument(
        "--packages", default="", help="distributions that sessions may import, comma-separated; default: the service's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/tools_soak.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        service_arguments = [
            "--tier",
            arguments.tier,
            "--max-sessions",
            str(arguments.sessions + _SPARE_SESSIONS),
            "--warm",
            str(_WARM),
        ]
        service_arguments += ["--memory-mb", "256"] + (["--packages", arguments.packages] if arguments.packages else [])
        service = start_local_service(log_path=log, extra_args=service_arguments)
        try:
            wrong, numbers = soak(service, arguments)
            found = processes.roles(service.process.pid)
        finally:
            service.stop()
        wrong += [f"left behind: {what}" for what in processes.left_behind(found)]
        wrong += [f"in the log: {line}" for line in log.read_text(errors="replace").splitlines() if "Traceback" in line]
    table = Table(
        title=f"{arguments.cells} cells, {arguments.sessions} sessions, {arguments.hostile:.0%} hostile; {service.banner[0]}"
    )
    for name in ("", "baseline", "under attack"):
        table.add_column(name, justify="right")
    for share in ("p50", "p99"):
        table.add_row(
            f"{share} of well-behaved cells, ms", *(f"{numbers[f'{run}_{share}_ms']:.1f}" for run in ("quiet", "loud"))
        )
    Console(width=120).print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps(numbers | {"wrong": wrong, "load": os.getloadavg(), "command": sys.argv[1:]}, indent=1)
    )
    print(f"hostile cells ended as {numbers['hostile']}; everything: {arguments.output}")
    for line in wrong[:40]:
        print(f"WRONG: {line}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
