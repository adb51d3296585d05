"""Speed of rollouts with real tools, of several settings or source trees, alternated.

    python -m benchmarks.rollout --side "now=." --side "before=../old_clone" --json rollout.json
    python -m benchmarks.rollout --side "fine=. --config.engine.shape_tolerance=1.3" --side "default=."

A side is NAME=FOLDER OPTIONS: a source tree and options of `dv2_jax.train`. Each is a process of its own that compiles its
programs and then rolls out 64 trajectories, 8 samples of 8 embedded questions, whenever it is its turn, so that load on
the machine affects all sides alike. Reported are medians of wall and CPU seconds, and how much of the computed rows,
keys and prefill tokens was needed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS, SAMPLES = 8, 8
_SEED = 3


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__.partition("\n")[0])
    result.add_argument("--side", action="append", required=True, metavar="NAME=FOLDER OPTIONS", help="may be repeated")
    result.add_argument("--rounds", type=int, default=5, help="rounds of each side after one that warms up")
    result.add_argument("--json", type=Path, help="file to write the numbers to")
    return result


def answer_rounds(options: list[str]) -> None:
    """Runs in the process of a side: prints a line of numbers for every line of its input."""
    from dv2_jax.config import load
    from dv2_jax.parallel import distributed
    from dv2_jax.policy import load_policy
    from dv2_jax.rollout.scheduler import RolloutRequest
    from dv2_jax.rollout.session import open_session
    from dv2_jax.toy.tasks import make_questions

    config = load(options, command="train", default_config="configs/rl.py")
    distributed.initialize(cpu_devices=config.mesh.cpu_devices)
    policy = load_policy(config)
    questions = list(make_questions("train", PROMPTS, _SEED))
    with (
        tempfile.TemporaryDirectory(prefix="dv2_jax_rollout_") as folder,
        open_session(policy, config, folder) as session,
    ):
        started = time.perf_counter()
        session.load_params()
        programs = session.engine.compiled_programs()
        _reply({"warmup_s": time.perf_counter() - started, "programs": programs})
        for line in sys.stdin:
            requests = [
                RolloutRequest(question, f"{line.strip()}.{index}.{sample}", SAMPLES * index + sample)
                for index, question in enumerate(questions)
                for sample in range(SAMPLES)
            ]
            scheduler = session.scheduler(temperature=1.0)
            started, cpu = time.perf_counter(), time.process_time()
            scheduler.run(requests)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            _reply({"seconds": seconds, "cpu_s": cpu, **_shares(scheduler.stats)})


def _shares(stats: dict[str, float]) -> dict[str, float]:
    pairs = {
        "rows_used": ("sampled_tokens", "decode_row_steps"),
        "keys_used": ("decode_keys_needed", "decode_keys"),
        "prefill_used": ("prefilled_tokens", "prefill_slots"),
    }
    shares = {name: stats[part] / stats[total] for name, (part, total) in pairs.items() if stats.get(total)}
    return {"sampled_tokens": stats["sampled_tokens"], **shares}


def _reply(numbers: dict) -> None:
    print("numbers " + json.dumps(numbers), flush=True)


class Side:
    """The process of one side."""

    def __init__(self, text: str):
        self.name, _, rest = text.partition("=")
        folder, *options = rest.split()
        environment = os.environ | {"PYTHONPATH": str(Path(folder).resolve())}
        command = [sys.executable, str(Path(__file__).resolve()), "--answer", *options]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.start = self._read()
        self.rounds: list[dict] = []

    def run(self, number: int) -> dict:
        """Runs one round and returns its numbers."""
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.close()
        self._process.wait()

    def summary(self) -> dict:
        """Returns the medians of all rounds, and the rounds."""
        medians = {name: statistics.median(row[name] for row in self.rounds) for name in self.rounds[0]}
        return {"name": self.name, **self.start, **medians, "rounds": self.rounds}

    def _read(self) -> dict:
        assert self._process.stdout is not None  # a pipe
        for line in self._process.stdout:
            if line.startswith("numbers "):
                return json.loads(line.partition(" ")[2])
        raise SystemExit(f"side {self.name!r} failed with exit status {self._process.wait()}")


def main() -> None:
    if sys.argv[1:2] == ["--answer"]:
        answer_rounds(sys.argv[2:])
        return
    arguments = parser().parse_args()
    sides = [Side(text) for text in arguments.side]
    try:
        for number in range(arguments.rounds + 1):
            for side in sides:
                row = side.run(number)
                if number:  # the first round reads files and fills caches
                    side.rounds.append(row)
    finally:
        for side in sides:
            side.close()
    first = sides[0].summary()
    result = {
        "trajectories": PROMPTS * SAMPLES,
        "sides": [side.summary() for side in sides],
        "speed_of_first": {side.name: side.summary()["seconds"] / first["seconds"] for side in sides[1:]},
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
