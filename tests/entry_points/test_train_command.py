"""The train command as a process: Ctrl-C leaves a checkpoint and no orphan processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import Config, load

ROOT = Path(__file__).resolve().parent.parent.parent
# The full tiny model, on short rows.
SMALL = [
    "--config=configs/sft.py", "--config.model.init=random", "--config.sft.steps=500", "--config.sft.batch_rows=2",
    "--config.sft.row_tokens=512", "--config.task.skills=reasoning,plain", "--config.run.tensorboard=false",
]  # fmt: skip


class Train:
    """A running `python -m dv2_jax.train` in its own process session, its output lines, and all its descendants."""

    def __init__(self, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dv2_jax.train", *arguments], cwd=ROOT, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines: list[str] = []
        self.descendants: set[psutil.Process] = set()
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self._reader.start()

    def until(self, found, seconds: float = 400.0) -> None:
        """Waits until `found()` and records descendants; fails with the output if the process ends first."""
        deadline = time.monotonic() + seconds
        while not found():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"exit {self.process.poll()}: {''.join(self.lines)[-3000:]}")
            self.gather()
            time.sleep(0.05)
        self.gather()

    def gather(self) -> None:
        self.descendants.update(psutil.Process(self.process.pid).children(recursive=True))

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)  # a terminal signals the entire foreground process group

    def end(self, seconds: float = 120.0) -> int:
        code = self.process.wait(seconds)
        self._reader.join(10)
        _, alive = psutil.wait_procs(self.descendants, timeout=60)
        assert [process.cmdline() for process in alive] == []
        return code


@pytest.fixture
def train():
    started: list[Train] = []

    def start(*arguments: str) -> Train:
        started.append(Train(*arguments))
        return started[-1]

    yield start
    for one in started:
        for process in {*one.descendants, one.process}:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        one.process.wait()
        one.process.stdout.close()


def test_ctrl_c_in_training_leaves_a_checkpoint_and_the_same_command_continues(train, tmp_path):
    """SFT on the scripted solver's trajectories with real tools. Catches a lost step, an orphan, a lost key."""
    arguments = [*SMALL, f"--config.run.root={tmp_path}", "--config.sft.examples=6", "--config.run.name=one"]
    first = train(*arguments)
    first.until(lambda: any(line.startswith("SFT ") for line in first.lines))
    first.ctrl_c()
    assert first.end() == 0, "".join(first.lines)
    run = tmp_path / "one"
    with CheckpointStore(run / "checkpoints") as store:
        (done,) = store.steps()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, done + 1))
    assert Config.from_dict(json.loads((run / "config.json").read_text())) == load(arguments)
    assert json.loads((run / "timeline.json").read_text())

    second = train(*arguments, f"--config.sft.steps={done + 1}")
    assert second.end(240) == 0, "".join(second.lines)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, done + 2))


def test_two_ctrl_c_stop_at_once_and_leave_no_process(train, tmp_path):
    """Interrupts while the tools service and sandboxes run. Catches children that outlive the trainer."""
    run = train(*SMALL, f"--config.run.root={tmp_path}", "--config.sft.examples=5000")
    run.until(lambda: len(run.descendants) >= 2)  # the service and a sandbox
    run.ctrl_c()
    run.until(lambda: any("once more stops at once" in line for line in run.lines), 30)
    run.ctrl_c()
    assert run.end(30) != 0
    assert "second signal (SIGINT)" in "".join(run.lines)
