"""The backbone against transformers on torch (and tunix, where its environment is named): tokens per second and memory.

    python -m benchmarks.model                                  # some five minutes on two cores
    python -m benchmarks.model --shapes text --rounds 15 --devices 1
    python -m benchmarks.model --tunix /path/to/venv/bin/python # text alone; that environment needs google-tunix

Every side is a process of its own that stays; they take turns, round by round, on the same cores, and medians count.
In its turn a side computes everything twice, and the second time counts: a step of training follows another one, while
memory that lay idle for seconds must first be fetched again, on a virtual machine from its host.
All sides compute the mean loss of the next token (*forward*), or it and the gradient of every weight (*gradient*), of
the same model in fp32; transformers and we have the same weights, and their losses must agree. A side's memory is the
largest resident size of its process while it takes its turns, after a first one.

Our programs come from JAX's cache of compiled programs, as those of a run that is started again do: a process before
fills it. What compiling leaves behind in a process, some 100 MiB, is therefore not counted; with ``--cold`` it is.
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
    """A process that answers each line, the name of a pass, with a line of JSON."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]):
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def ask(self, word: str) -> dict:
        """Raises RuntimeError when the process has ended."""
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
    """Seconds by ``clock`` of every round by side and pass, and each side's peak memory in bytes."""
    found: dict[str, dict] = {side.name: {name: [] for name in PASSES} for side in sides}
    losses = {}
    for side in sides:
        for name in PASSES:
            losses[side.name] = side.ask(name)["loss"]  # compiles and warms up
        side.ask("reset")
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            for name in PASSES:
                side.ask(name)
                found[side.name][name].append(side.ask(name)[clock])
    for side in sides:
        found[side.name]["memory"] = side.ask("memory")["bytes"]
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
    parser.add_argument("--threads", type=int, default=2, help="cores that every side may use")
    parser.add_argument(
        "--devices",
        type=int,
        default=2,
        help="CPU devices that we split rows over, or a single row's tokens",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: seconds of all cores together; with one thread, they also compare on a machine that does other work",
    )
    parser.add_argument("--cold", action="store_true", help="compile our programs in the process that is measured")
    parser.add_argument("--divide", type=int, default=1, help="shapes this many times smaller, to try the benchmark")
    parser.add_argument("--tunix", default="", help="a Python with google-tunix")
    parser.add_argument("--output", type=Path, help="write every sample there, as JSON")
    arguments = parser.parse_args(argv)

    allowed = os.sched_getaffinity(0)
    if len(allowed) < arguments.threads:
        parser.error(f"--threads {arguments.threads}: this process may use {len(allowed)} cores")
    os.sched_setaffinity(0, sorted(allowed)[: arguments.threads])  # of the sides too
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
                filling = Side("ours", started["ours"], environment)
                for word in PASSES:
                    filling.ask(word)
                filling.close()
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
