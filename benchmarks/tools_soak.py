"""Many cells over many sessions, some of them hostile: nothing may grow, and nobody else may notice.

    python -m benchmarks.tools_soak                                     # 20,000 cells, 500 sessions, 5 % hostile
    python -m benchmarks.tools_soak --cells 200 --sessions 10 --warm-cells 50 --latency-ratio 0

First a quiet run gives the latency of well-behaved sessions. Then the same load again, while hostile
sessions run the cells of ``hostile_cells.py``. After every stretch the hostile sessions are closed, and
processes, memory, descriptors, cgroups, mounts and folders of the idle service are counted. Every
well-behaved session counts its own cells: an answer that is lost, doubled, mixed up or comes from a
fresh namespace is seen. Exits with 1 and says what was wrong.
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
# Each cell counts on; every other one also returns a crop that does not compress, so that whatever the service
# keeps of its answers has filled up before the first half is over.
_COUNT = "n = globals().get('n', 0) + 1\nprint(n)"
_CROP = f"\nx = n * 37 % 500\ndisplay(image_1.crop((x, x, x + {_SIDE}, x + {_SIDE})))"
_HUNG_S = 180.0
_SPARE_SESSIONS, _WARM = 8, 8


@dataclass
class Stretch:
    """What a stretch of load showed."""

    latencies: list[float] = field(default_factory=list)  # ms, of well-behaved cells
    hostile: Counter[str] = field(default_factory=Counter)  # statuses of hostile cells
    wrong: list[str] = field(default_factory=list)

    def p(self, share: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Load:
    """Cells at a steady rate, whatever the service makes of them, at most one at a time in a session.

    A cell's latency counts from when it was due: a service that falls behind cannot hide it.
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

    def open_all(self) -> Stretch:
        """One cell in every well-behaved session."""
        return self._drive(list(self._counts))

    def run(self, cells: int, hostile_share: float) -> Stretch:
        """``cells`` cells in random sessions, of which ``hostile_share`` are hostile."""
        bad = round(cells * hostile_share)
        order = [*self._random.choices(list(self._counts), k=cells - bad), *[""] * bad]
        self._random.shuffle(order)
        return self._drive(order)

    def _drive(self, order: list[str]) -> Stretch:
        """Runs a cell in each session of ``order``; an empty name stands for a hostile cell in some hostile session."""
        stretch = Stretch()
        started = heard = time.monotonic()
        coming = collections.deque((started + i / self._rate, name) for i, name in enumerate(order))
        late: collections.deque[tuple[float, str]] = collections.deque()  # due, but their session is still busy
        busy: dict[str, tuple[str, float, str]] = {}  # request id → session, when due, kind of hostile cell
        with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task("cells", total=len(order))
            while coming or late or busy:
                while coming and coming[0][0] <= time.monotonic():
                    late.append(coming.popleft())
                requests = self._startable(late, busy)
                if requests:
                    self._client.submit(requests)
                pause = coming[0][0] - time.monotonic() if coming else 0.5
                for result in self._client.poll(min(0.5, max(0.001, pause))):
                    heard = time.monotonic()
                    self._take(result, busy, stretch)
                    bar.advance(task)
                if busy and time.monotonic() - heard > _HUNG_S:
                    stretch.wrong.append(
                        f"no answer for {_HUNG_S:g} s to {len(busy)} cells: {sorted(busy.values())[:5]}"
                    )
                    return stretch
        return stretch

    def _startable(self, late: collections.deque, busy: dict) -> list[ExecRequest]:
        """Requests for those cells whose session is free; the others stay in ``late``."""
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

    def _take(self, result: ToolResult, busy: dict, stretch: Stretch) -> None:
        if result.request_id not in busy:
            stretch.wrong.append(f"an answer too many to {result.request_id}: {result.status.name}")
            return
        session, due, kind = busy.pop(result.request_id)
        if kind:
            stretch.hostile[result.status.name] += 1
            if result.status in (Status.UNAVAILABLE, Status.REFUSED):
                stretch.wrong.append(f"hostile cell ({kind}): {result.status.name}, {result.message}")
            return
        stretch.latencies.append((time.monotonic() - due) * 1e3)
        self._counts[session] += 1
        expected = f"{self._counts[session]}\n"
        pictures = 0 if self._counts[session] % 2 else 1
        if result.status is not Status.OK or result.stdout != expected or len(result.images) != pictures:
            stretch.wrong.append(
                f"{session}: {result.status.name}, {result.message or result.stderr[-200:]!r}, printed {result.stdout!r} for "
                f"{expected!r}, {len(result.images)} pictures for {pictures}"
            )
            self._counts[session] = int(result.stdout) if result.stdout.strip().isdigit() else 0

    def settle(self) -> processes.Footprint:
        """Closes the hostile sessions and counts, once the number of processes no longer falls."""
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


def soak(service: LocalService, given: argparse.Namespace) -> tuple[list[str], dict]:
    """What was wrong, and the numbers."""
    hostile = max(1, round(given.sessions * given.hostile))
    load = Load(service, given.sessions, hostile, given.rate, given.hostile_at_once, given.seed)
    opened = load.open_all()
    quiet = load.run(given.warm_cells, 0.0)
    prints = [load.settle()]
    loud = Stretch()
    stretches = max(2, min(20, given.cells // 1000))
    started = time.monotonic()
    for number in range(stretches):
        part = load.run(given.cells // stretches, given.hostile)
        loud.latencies += part.latencies
        loud.hostile.update(part.hostile)
        loud.wrong += part.wrong
        prints.append(load.settle())
        print(f"{number + 1}/{stretches}: p99 {part.p(0.99):.1f} ms; {_line(prints[-1])}", flush=True)
        if part.wrong:
            break
    took = time.monotonic() - started
    numbers = {
        "quiet_p50_ms": quiet.p(0.5), "quiet_p99_ms": quiet.p(0.99), "loud_p50_ms": loud.p(0.5), "loud_p99_ms": loud.p(0.99),
        "cells_per_s": (len(loud.latencies) + sum(loud.hostile.values())) / took, "hostile": dict(loud.hostile),
        "counters": load.counters(), "footprints": [dataclasses.asdict(p) for p in prints],
    }  # fmt: skip
    load.close()
    wrong = opened.wrong + quiet.wrong + loud.wrong
    # What fills up to a limit, as the kept answers do, does so in the first half.
    middle = prints[len(prints) // 2]
    slots = given.sessions + _SPARE_SESSIONS + _WARM + 32
    for name, (before, after) in processes.growth(middle, prints[-1], cgroups_at_most=2 * (slots + 2)).items():
        wrong.append(f"{name} grew from {before:.1f} to {after:.1f} over the second half")
    ratio = numbers["loud_p99_ms"] / numbers["quiet_p99_ms"]
    if given.latency_ratio and ratio > given.latency_ratio:
        wrong.append(
            f"p99 of well-behaved sessions is {ratio:.2f} times that of the quiet run; at most {given.latency_ratio:g}"
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
    parser.add_argument("--warm-cells", type=int, default=2000, help="of the quiet run")
    parser.add_argument("--rate", type=float, default=40.0, help="cells a second, quiet and under attack")
    parser.add_argument(
        "--hostile-at-once", type=int, default=4, help="hostile cells that run at the same time, at most"
    )
    parser.add_argument(
        "--latency-ratio", type=float, default=3.0, help="p99 under attack over p99 of the quiet run; 0: not judged"
    )
    parser.add_argument("--tier", default="root", help="strongest confinement that the service may use")
    parser.add_argument(
        "--packages", default="", help="distributions that sessions may import, comma-separated; default: the service's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/tools_soak.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        arguments = [
            "--tier",
            given.tier,
            "--max-sessions",
            str(given.sessions + _SPARE_SESSIONS),
            "--warm",
            str(_WARM),
        ]
        arguments += ["--memory-mb", "256"] + (["--packages", given.packages] if given.packages else [])
        service = start_local_service(log_path=log, extra_args=arguments)
        try:
            wrong, numbers = soak(service, given)
            found = processes.roles(service.process.pid)
        finally:
            service.stop()
        wrong += [f"left behind: {what}" for what in processes.left_behind(found)]
        wrong += [f"in the log: {line}" for line in log.read_text(errors="replace").splitlines() if "Traceback" in line]
    table = Table(
        title=f"{given.cells} cells, {given.sessions} sessions, {given.hostile:.0%} hostile; {service.banner[0]}"
    )
    for name in ("", "quiet", "under attack"):
        table.add_column(name, justify="right")
    for share in ("p50", "p99"):
        table.add_row(
            f"{share} of well-behaved cells, ms", *(f"{numbers[f'{run}_{share}_ms']:.1f}" for run in ("quiet", "loud"))
        )
    Console(width=120).print(table)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(
        json.dumps(numbers | {"wrong": wrong, "load": os.getloadavg(), "command": sys.argv[1:]}, indent=1)
    )
    print(f"hostile cells ended as {numbers['hostile']}; everything: {given.output}")
    for line in wrong[:40]:
        print(f"WRONG: {line}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
