"""Benchmark of the backbone against transformers on torch (and optionally tunix): tokens per second and memory.

    python -m benchmarks.model                                  # about five minutes on two cores
    python -m benchmarks.model --shapes text --rounds 15 --devices 1
    python -m benchmarks.model --tunix /path/to/venv/bin/python # text only; that environment needs google-tunix

Every side is a separate process; the sides alternate round by round on the same cores, and medians are reported.
In each round a side computes everything twice and only the second pass is measured, as pages that were idle for
seconds may have been reclaimed by the host. All sides compute the mean next-token loss (*forward*), or the loss and the
gradient of every weight (*gradient*), of the same model in fp32; transformers and dv2_jax have equal weights, and their
losses must agree. A side's memory is the peak resident size of its process during the measured rounds.

dv2_jax loads its programs from JAX's compilation cache, which another process has filled, as a resumed run does. The
memory of the compiler, about 100 MiB, is therefore not included, except with `--cold`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.model_shapes import SHAPES, write_model, write_shape

PASSES = ("forward", "gradient")
LOSS_TOLERANCE = 1e-4  # relative


class Side:
    """A process that reads the name of a pass per line and answers with a line of JSON."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]):
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def request(self, word: str) -> dict:
        """Sends a word and returns the answer. Raises RuntimeError if the process has ended."""
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}; its error is above")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


def measure(sides: Sequence[Side], rounds: int, clock: str = "wall") -> dict[str, dict]:
    """Returns the seconds (by `clock`) of every round by side and pass, and each side's peak memory in bytes."""
    found: dict[str, dict] = {side.name: {name: [] for name in PASSES} for side in sides}
    losses = {}
    for side in sides:
        for name in PASSES:
            losses[side.name] = side.request(name)["loss"]  # compilation and warm-up
        side.request("reset")
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            for name in PASSES:
                side.request(name)
                found[side.name][name].append(side.request(name)[clock])
    for side in sides:
        found[side.name]["memory"] = side.request("memory")["bytes"]
    ours, theirs = losses["ours"], losses["torch"]
    if abs(ours - theirs) > LOSS_TOLERANCE * abs(theirs):
        raise RuntimeError(f"not the same computation: loss {ours} here, {theirs} in transformers")
    return found


def commands(folder: Path, shape: Path, name: str, arguments: argparse.Namespace) -> dict[str, list[str]]:
    here = [sys.executable, "-m", "benchmarks.model_sides"]
    found = {
        "ours": [*here, "ours", str(folder), str(shape), str(arguments.devices)],
        "torch": [*here, "torch", str(folder), str(shape), str(arguments.threads)],
    }
    if arguments.tunix and name == "text":
        script = Path(__file__).with_name("model_tunix.py")
        found["tunix"] = [arguments.tunix, str(script), str(folder / "config.json"), str(shape)]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="cores available to every side")
    parser.add_argument(
        "--devices",
        type=int,
        default=2,
        help="CPU devices of dv2_jax; rows, or a single row's tokens, are sharded over them",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: CPU seconds summed over cores, comparable on a loaded machine if --threads is 1",
    )
    parser.add_argument("--cold", action="store_true", help="compile in the measured process")
    parser.add_argument(
        "--divide", type=int, default=1, help="divide the shapes' sizes by this number, for a quick trial"
    )
    parser.add_argument("--tunix", default="", help="Python interpreter with google-tunix")
    parser.add_argument("--output", type=Path, help="JSON file for all samples")
    arguments = parser.parse_args(argv)

    allowed = os.sched_getaffinity(0)
    if len(allowed) < arguments.threads:
        parser.error(f"--threads {arguments.threads}: this process may use {len(allowed)} cores")
    os.sched_setaffinity(0, sorted(allowed)[: arguments.threads])  # inherited by the sides
    try:
        return run(arguments)
    finally:
        os.sched_setaffinity(0, allowed)


def run(arguments: argparse.Namespace) -> int:
    table = Table(
        "shape",
        "side",
        "forward tok/s",
        "gradient tok/s",
        "× torch",
        "memory MiB",
        title=f"fp32, medians, {arguments.clock} clock",
    )
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        write_model(folder)
        for name in arguments.shapes:
            shape = Path(temporary, f"{name}.npz")
            tokens = write_shape(shape, name, arguments.divide)
            environment = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(arguments.threads)}
            started = commands(folder, shape, name, arguments)
            if not arguments.cold:
                environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
                environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
                warmup = Side("ours", started["ours"], environment)
                for word in PASSES:
                    warmup.request(word)
                warmup.close()
            sides = [Side(side, command, environment) for side, command in started.items()]
            try:
                results[name] = {"tokens": tokens, **measure(sides, arguments.rounds, arguments.clock)}
            finally:
                for side in sides:
                    side.close()
            _rows(table, name, results[name])
    Console().print(table)
    if arguments.output:
        facts = {
            "versions": {package: version(package) for package in ("jax", "torch", "transformers")},
            "machine": platform.platform(),
            "cores": arguments.threads,
            "load": os.getloadavg()[0],
            "time": time.strftime("%Y-%m-%d %H:%M"),
            "arguments": {key: str(value) for key, value in vars(arguments).items()},
        }
        arguments.output.write_text(json.dumps({**facts, "shapes": results}, indent=1))
    return 0


def _rows(table: Table, shape: str, result: dict) -> None:
    tokens = result["tokens"]
    rates = {
        side: [tokens / statistics.median(result[side][name]) for name in PASSES] for side in result if side != "tokens"
    }
    for side, speeds in rates.items():
        ratios = " ".join(f"{mine / other:.2f}" for mine, other in zip(speeds, rates["torch"], strict=True))
        memory = f"{result[side]['memory'] / 2**20:,.0f}"
        table.add_row(shape, side, *(f"{speed:,.0f}" for speed in speeds), ratios, memory)


if __name__ == "__main__":
    sys.exit(main())
