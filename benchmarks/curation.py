"""Measures data construction: from raw questions to trained policies, under kills and failures, and at 100,000 rows.

    python -m benchmarks.curation acceptance [--questions 64]     laptop: the entire pipeline, then cold start and RL on its files
    python -m benchmarks.curation kills [--kills 20]              kill -9 at random moments, 30 % of the requests fail
    python -m benchmarks.curation scale [--rows 100000]           stages without a model: memory, rows per second, shards

Each prints its numbers and writes them with `--json FILE`; a check that does not hold is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scripted_endpoint import Faults, ScriptedModels, serve

ROOT = Path(__file__).resolve().parent.parent


def curate_command(folder: Path, *overrides: str) -> list[str]:
    """Returns the command of a curation whose run directory is in `folder`."""
    return [
        sys.executable, "-m", "dv2_jax.curate", f"--config={ROOT}/configs/curate.py", f"--config.run.root={folder}",
        *(f"--config.{override}" for override in overrides),
    ]  # fmt: skip


def train_command(recipe: str, folder: Path, *overrides: str, module: str = "dv2_jax.train") -> list[str]:
    """Returns the command of a recipe on the laptop's settings whose run directory is in `folder`."""
    return [
        sys.executable, "-m", module, f"--config={ROOT}/configs/{recipe}.py", f"--config.run.root={folder}",
        *(f"--config.{override}" for override in overrides),
    ]  # fmt: skip


def run(command: Sequence[str]) -> tuple[float, str]:
    """Runs a command to its end; returns its seconds and its output, and raises RuntimeError if it fails."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.monotonic() - started, done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def acceptance(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the pipeline with the shipped policy and a faulty teacher, checks the files and trains on both."""
    models = ScriptedModels(arguments.questions, faults=Faults(wrong=0.15, malformed=0.1, overload=0.1))
    seconds: dict[str, float] = {}
    with serve(models) as (url, log):
        command = curate_command(
            folder, f"curate.size={arguments.questions}", f"curate.samples={arguments.samples}",
            f"curate.min_solved_with_tools={arguments.samples}",  # the cold start solves most at least once
            f"curate.teachers={url}#teacher",
        )  # fmt: skip
        seconds["curate"], _ = run(command)
        statuses = dict(sorted(log.statuses.items()))
    output = folder / "curate" / "output"
    lines = [json.loads(line) for line in (output / "provenance.jsonl").read_text().splitlines()]
    for name in ("rl.parquet", "sft.json"):
        seconds[f"check {name}"], _ = run(
            [sys.executable, "-m", "dv2_jax.data.check", str(output / name), "--no-cache"]
        )
    seconds["cold start"], _ = run(
        train_command("sft", folder, "run.name=sft", f"sft.data={output}/sft.json", "sft.steps=4")
    )
    seconds["rl"], _ = run(
        train_command("rl", folder, "run.name=rl", f"task.source={output}/rl.parquet", "rl.steps=2", "task.eval_size=4")
    )
    dropped = Counter(f"{line['stage']}: {re.sub(r'[0-9]+', '#', line['reason'])}" for line in lines if line["reason"])
    return {
        "questions": len(lines),
        "sets": dict(Counter(str(line["set"]) for line in lines)),
        "dropped": dict(dropped.most_common()),
        "statuses": statuses,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "minutes": round(sum(seconds.values()) / 60, 1),
    }


def kills(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kills a curation at random moments while requests fail; compares its output with that of an undisturbed one."""
    size = arguments.questions

    def settings(url: str, name: str) -> list[str]:
        return [
            f"run.name={name}", f"curate.size={size}", "curate.samples=3", "curate.max_solved_without_tools=1",
            f"curate.endpoint={url}", "curate.endpoint_model=base", f"curate.teachers={url}#teacher", "curate.concurrency=4",
        ]  # fmt: skip

    quiet = Faults(wrong=0.15, malformed=0.1)
    with serve(ScriptedModels(size, faults=quiet)) as (url, log):
        run(curate_command(folder, *settings(url, "alone")))
        requests = set(log.requests)
        if len(log.requests) != len(requests):
            raise RuntimeError("an undisturbed run has sent a request twice")
    wanted = contents(folder / "alone" / "output")

    noisy = Faults(wrong=0.15, malformed=0.1, overload=0.1, failing=0.2)
    rng, done, again, stored = random.Random(arguments.seed), 0, 0, set()
    with serve(ScriptedModels(size, faults=noisy), delay_s=0.02) as (url, log):
        command = curate_command(folder, *settings(url, "killed"))
        finished, seen = False, 0
        while not finished:
            with open(folder / "log.txt", "ab") as out:
                process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
            if done < arguments.kills:
                limit = len(log.requests) + rng.randint(1, max(2, int(1.6 * len(requests) / arguments.kills)))
                while len(log.requests) < limit and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.random() * 0.3)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    done += 1
            code = process.wait()
            time.sleep(0.1)  # until the server has read what was on its way
            repeated = set(log.requests[seen:]) & stored
            if repeated:
                raise RuntimeError(f"{len(repeated)} requests whose replies were stored were sent again")
            seen = len(log.requests)
            stored = _stored(folder / "killed" / "replies")
            if code not in (0, -signal.SIGKILL):
                raise RuntimeError((folder / "log.txt").read_text()[-4000:])
            finished = code == 0
        again = log.statuses.get(200, 0)
        statuses = dict(sorted(log.statuses.items()))
    found = contents(folder / "killed" / "output")
    if found != wanted:
        changed = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
        raise RuntimeError(f"the killed run has written other bytes: {', '.join(sorted(changed))}")
    if stored != requests:
        raise RuntimeError(f"{len(stored ^ requests)} requests differ from those of the undisturbed run")
    return {
        "kills": done, "requests": len(requests), "replies sent": again, "statuses": statuses, "files": len(found),
        "identical": True,
    }  # fmt: skip


def _stored(folder: Path) -> set[str]:
    """Returns the digests of the requests whose replies are stored; the reply's `model` ends with them."""
    found = set()
    for path in folder.glob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            found.add(json.loads(line)["model"].rpartition("@")[2])
    return found


def scale(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs read, deduplicate and mix on generated rows, with one shard and with two at the same time."""
    source = folder / "rows.jsonl"
    words = [f"w{number}" for number in range(20_000)]
    rng = random.Random(0)
    with open(source, "w") as file:
        for number in range(arguments.rows):
            text = (
                " ".join(rng.choices(words, k=24))
                if number % 20
                else f"{' '.join(words[number // 200 : number // 200 + 24])}"
            )
            file.write(json.dumps({"id": str(number), "question": text, "answer": str(number)}) + "\n")
    result: dict[str, Any] = {"rows": arguments.rows}
    common = [f"curate.sources=rows={source};CC0", "curate.size=0"]
    for count in (1, 2):
        name = f"shards{count}"
        started = time.monotonic()
        parts = [
            _measured(
                curate_command(
                    folder, *common, f"run.name={name}", f"curate.shard={index}/{count}", "curate.stages=read"
                )
            )
            for index in range(count)
        ]
        usage = [_finish(part) for part in parts]
        seconds = time.monotonic() - started
        result[f"read, {count} shard{'s' * (count > 1)}"] = _speed(arguments.rows, seconds, usage)
    for stages in ("read,deduplicate", "read,deduplicate,mix"):
        started = time.monotonic()
        usage = [_finish(_measured(curate_command(folder, *common, "run.name=shards1", f"curate.stages={stages}")))]
        result[stages.rpartition(",")[2]] = _speed(arguments.rows, time.monotonic() - started, usage)
    lines = (folder / "shards1" / "output" / "provenance.jsonl").read_bytes().count(b"\n")
    if lines != arguments.rows:
        raise RuntimeError(f"{lines:,} of {arguments.rows:,} rows have come through")
    return result


@dataclass(frozen=True)
class Usage:
    """Peak memory and processor time of a command."""

    peak_bytes: int
    cpu_s: float


def _measured(command: list[str]) -> subprocess.Popen:
    """Starts a command whose last line of output has its peak memory in bytes and its processor time in seconds."""
    program = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode;"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime); sys.exit(code)"
    )
    return subprocess.Popen([sys.executable, "-c", program, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen) -> Usage:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a command failed with exit code {process.returncode}")
    peak, seconds = out.split()[-2:]
    return Usage(int(peak), float(seconds))


def _speed(rows: int, seconds: float, usage: Sequence[Usage]) -> dict[str, float]:
    """Returns the numbers of processes that ran at the same time; processor time is that of the slowest."""
    return {
        "seconds": round(seconds, 1),
        "rows/s": round(rows / seconds),
        "CPU s of each": round(max(used.cpu_s for used in usage), 1),
        "peak MB": round(max(used.peak_bytes for used in usage) / 1e6),
    }


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.curation", description=__doc__.partition("\n")[0])
    commands = result.add_subparsers(required=True)
    for function, options in (
        (acceptance, {"questions": 48, "samples": 4}),
        (kills, {"questions": 24, "kills": 20, "seed": 0}),
        (scale, {"rows": 100_000}),
    ):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        for name, default in options.items():
            command.add_argument(f"--{name}", type=int, default=default)
        add_output_options(command)
    return result


def run_in_folder(
    function: Callable[[argparse.Namespace, Path], dict[str, Any]], arguments: argparse.Namespace
) -> None:
    """Runs a measurement in `--folder` or a temporary folder; prints its numbers and writes them to `--json`."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result = function(arguments, folder)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options `--json` and `--folder` of `run_in_folder`."""
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--folder", type=Path, help="folder for the runs; by default a temporary one")


def main() -> None:
    """Runs one measurement."""
    arguments = parser().parse_args()
    run_in_folder(arguments.function, arguments)


if __name__ == "__main__":
    main()
