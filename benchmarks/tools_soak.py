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
    """A closed loop: a bounded number of cells in flight, at most one in a session."""

    def __init__(self, service: LocalService, sessions: int, hostile: int, in_flight: int, hostile_in_flight: int, seed: int):
        self._service, self._client = service, ToolsClient(service.address)
        self._counts = {f"good-{i}": 0 for i in range(sessions - hostile)}
        self._hostile = [f"hostile-{i}" for i in range(hostile)]
        self._kinds = itertools.cycle(CELLS.items())
        self._in_flight, self._hostile_in_flight = in_flight, hostile_in_flight
        self._random, self._ids = random.Random(seed), itertools.count()
        noise = io.BytesIO()
        Image.frombytes("RGB", (640, 640), self._random.randbytes(3 * 640 * 640)).save(noise, "PNG", compress_level=0)
        self._image = noise.getvalue()

    def open_all(self) -> Stretch:
        """One cell in every well-behaved session."""
        return self._drive(list(self._counts), 0)

    def run(self, cells: int, hostile_share: float) -> Stretch:
        """``cells`` cells in random sessions, of which ``hostile_share`` are hostile."""
        bad = round(cells * hostile_share)
        return self._drive(self._random.choices(list(self._counts), k=cells - bad), bad)

    def _drive(self, order: list[str], bad: int) -> Stretch:
        stretch, good = Stretch(), len(order)
        waiting = list(reversed(order))
        busy: dict[str, tuple[str, float, str]] = {}  # request id → session, when sent, kind of hostile cell
        inside: set[str] = set()  # sessions with a cell in flight
        sent_bad = 0
        heard = time.monotonic()
        with Progress(transient=True) as bar:
            task = bar.add_task("cells", total=good + bad)
            while waiting or sent_bad < bad or busy:
                requests = []
                bad_now = sum(1 for _, _, kind in busy.values() if kind)
                # Hostile cells keep their share all along: the others wait for them.
                while waiting and len(busy) - bad_now + len(requests) < self._in_flight and (
                    (good - len(waiting)) * bad <= (sent_bad + 1) * good
                ):
                    session = self._next_free(waiting, inside)
                    if session is None:
                        break
                    requests.append(self._cell(session, busy, inside))
                while sent_bad < bad and bad_now < self._hostile_in_flight and sent_bad * good <= (good - len(waiting)) * bad:
                    free = [name for name in self._hostile if name not in inside]
                    if not free:
                        break
                    requests.append(self._hostile_cell(self._random.choice(free), busy, inside))
                    bad_now, sent_bad = bad_now + 1, sent_bad + 1
                if requests:
                    self._client.submit(requests)
                for result in self._client.poll(0.5):
                    heard = time.monotonic()
                    self._take(result, busy, inside, stretch)
                    bar.advance(task)
                if time.monotonic() - heard > _HUNG_S:
                    stretch.wrong.append(f"no answer for {_HUNG_S:g} s to {len(busy)} cells: {sorted(busy.values())[:5]}")
                    return stretch
        return stretch

    def _next_free(self, waiting: list[str], inside: set[str]) -> str | None:
        for place in range(len(waiting) - 1, max(-1, len(waiting) - 64), -1):
            if waiting[place] not in inside:
                return waiting.pop(place)
        return None

    def _cell(self, session: str, busy: dict, inside: set[str]) -> ExecRequest:
        code = _COUNT + (_CROP if self._counts[session] % 2 else "")
        return self._send(session, code, 60.0, "", busy, inside)

    def _hostile_cell(self, session: str, busy: dict, inside: set[str]) -> ExecRequest:
        kind, code = next(self._kinds)
        return self._send(session, code, 1.0, kind, busy, inside)

    def _send(self, session: str, code: str, timeout_s: float, kind: str, busy: dict, inside: set[str]) -> ExecRequest:
        request = ExecRequest(f"soak-{next(self._ids)}", session, code, timeout_s, () if kind else (self._image,))
        busy[request.request_id] = (session, time.monotonic(), kind)
        inside.add(session)
        return request

    def _take(self, result: ToolResult, busy: dict, inside: set[str], stretch: Stretch) -> None:
        if result.request_id not in busy:
            stretch.wrong.append(f"an answer too many to {result.request_id}: {result.status.name}")
            return
        session, sent, kind = busy.pop(result.request_id)
        inside.discard(session)
        if kind:
            stretch.hostile[result.status.name] += 1
            if result.status in (Status.UNAVAILABLE, Status.REFUSED):
                stretch.wrong.append(f"hostile cell ({kind}): {result.status.name}, {result.message}")
            return
        stretch.latencies.append((time.monotonic() - sent) * 1e3)
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
    load = Load(service, given.sessions, hostile, given.in_flight, given.hostile_in_flight, given.seed)
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
        wrong.append(f"p99 of well-behaved sessions is {ratio:.2f} times that of the quiet run; at most {given.latency_ratio:g}")
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
    parser.add_argument("--in-flight", type=int, default=16, help="well-behaved cells at once")
    parser.add_argument("--hostile-in-flight", type=int, default=4)
    parser.add_argument("--latency-ratio", type=float, default=3.0, help="p99 under attack over p99 of the quiet run; 0: not judged")
    parser.add_argument("--tier", default="root", help="strongest confinement that the service may use")
    parser.add_argument("--packages", default="", help="distributions that sessions may import, comma-separated; default: the service's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/tools_soak.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        arguments = ["--tier", given.tier, "--max-sessions", str(given.sessions + _SPARE_SESSIONS), "--warm", str(_WARM)]
        arguments += ["--memory-mb", "256"] + (["--packages", given.packages] if given.packages else [])
        service = start_local_service(log_path=log, extra_args=arguments)
        try:
            wrong, numbers = soak(service, given)
            found = processes.roles(service.process.pid)
        finally:
            service.stop()
        wrong += [f"left behind: {what}" for what in processes.left_behind(found)]
        wrong += [f"in the log: {line}" for line in log.read_text(errors="replace").splitlines() if "Traceback" in line]
    table = Table(title=f"{given.cells} cells, {given.sessions} sessions, {given.hostile:.0%} hostile; {service.banner[0]}")
    for name in ("", "quiet", "under attack"):
        table.add_column(name, justify="right")
    for share in ("p50", "p99"):
        table.add_row(f"{share} of well-behaved cells, ms", *(f"{numbers[f'{run}_{share}_ms']:.1f}" for run in ("quiet", "loud")))
    Console(width=120).print(table)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(numbers | {"wrong": wrong, "load": os.getloadavg(), "command": sys.argv[1:]}, indent=1))
    print(f"hostile cells ended as {numbers['hostile']}; everything: {given.output}")
    for line in wrong[:40]:
        print(f"WRONG: {line}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
