"""Launches and supervises a training run on a Cloud TPU slice.

    python tpu/launch.py up --name deepeyes --zone us-east5-a --accelerator-type v5p-64 --spot \\
        --copy gs://bucket/models/cold-start-7b=models/cold-start-7b \\
        -- --config=configs/rl.py:7b --config.run.root=/mnt/bucket/runs

`up` runs the verbs `create`, `wait`, `install`, `run` and `watch`; others are `status`, `logs`, `stop` and `delete`. `watch`
follows the run to its end: after a preemption it requests the slice again and starts the same command, which continues
from the last checkpoint. `--dry-run` prints every command and runs none.

Needs gcloud with credentials, and ssh keys in the agent. `worker.sh` is the part that runs on the workers.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "dv2_jax"  # in the home directory of every worker

# Cloud TPU software images by prefix of the accelerator type. v7x is missing: it is available only through GKE.
RUNTIMES = {
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "NOT_FOUND")  # terminal states of a queued resource


class LaunchError(Exception):
    """A user-facing error with its fix, printed without a traceback."""


@dataclass(frozen=True)
class Slice:
    """The slice, and the gcloud commands that manage it."""

    name: str
    zone: str
    accelerator_type: str  # gcloud's name; its number counts TensorCores on v4 and v5p, two per chip
    runtime_version: str
    project: str
    spot: bool
    reserved: bool
    service_account: str

    def gcloud(self, *words: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.zone}", *project]

    def create(self) -> list[str]:
        flags = ["--spot"] if self.spot else ["--reserved"] if self.reserved else []
        if self.service_account:
            flags.append(f"--service-account={self.service_account}")
        return [
            *self.gcloud("queued-resources", "create", self.name),
            f"--node-id={self.name}",
            f"--accelerator-type={self.accelerator_type}",
            f"--runtime-version={self.runtime_version}",
            *flags,
        ]

    def state(self) -> list[str]:
        # `list`, not `describe`: for a deleted request it returns an empty result instead of an error.
        return [*self.gcloud("queued-resources", "list"), f"--filter=name~/{self.name}$", "--format=value(state.state)"]

    def delete(self) -> list[str]:
        return [*self.gcloud("queued-resources", "delete", self.name), "--force", "--quiet"]

    def ssh(self, command: str, *flags: str) -> list[str]:
        return [*self.gcloud("tpu-vm", "ssh", self.name), "--worker=all", f"--command={command}", *flags]

    def send(self, file: str) -> list[str]:
        return [*self.gcloud("tpu-vm", "scp", file, f"{self.name}:{FOLDER}.tar.gz"), "--worker=all"]

    def worker(self, verb: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
        return self.ssh(shlex.join(["bash", f"{FOLDER}/tpu/worker.sh", verb, *arguments]), *flags)


class CommandRunner:
    """Runs commands, or only prints them in a dry run."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def run(self, command: list[str]) -> None:
        print(f"$ {shlex.join(command)}", flush=True)
        if not self.dry_run and (code := subprocess.run(command).returncode):
            raise LaunchError(f"exit code {code} of: {shlex.join(command)}")

    def read(self, command: list[str], dry_run_output: str) -> str:
        """Returns the standard output; in a dry run prints the command and returns `dry_run_output`."""
        if self.dry_run:
            print(f"$ {shlex.join(command)}   # until: {dry_run_output.replace(chr(10), ', ')}", flush=True)
            return dry_run_output
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LaunchError(f"exit code {done.returncode} of: {shlex.join(command)}\n{done.stderr.strip()}")
        return done.stdout.strip()


class Launch:
    """The verbs of the command line."""

    def __init__(self, slice_: Slice, runner: CommandRunner, options: argparse.Namespace):
        self.slice = slice_
        self.runner = runner
        self.options = options

    def create(self) -> None:
        self.runner.run(self.slice.create())

    def state(self) -> str:
        return self.runner.read(self.slice.state(), "ACTIVE") or "NOT_FOUND"

    def wait(self) -> None:
        """Waits until the request is granted. Raises LaunchError if it reaches a terminal state."""
        shown = ""
        while (state := self.state()) != "ACTIVE":
            if state in GONE:
                raise LaunchError(f"the request {self.slice.name} is {state}: delete it and create it again")
            if state != shown:
                print(f"{self.slice.name}: {state}", flush=True)
                shown = state
            time.sleep(self.options.poll)

    def install(self) -> None:
        """Installs the committed source and its dependencies on every worker, then runs `--copy` and `--setup`."""
        if not self.runner.dry_run:
            status = ["git", "-C", str(ROOT), "status", "--porcelain"]
            if changed := subprocess.run(status, capture_output=True, text=True).stdout.splitlines():
                print(f"{len(changed)} files have uncommitted changes: the workers get HEAD", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            archive = f"{folder}/{FOLDER}.tar.gz"
            self.runner.run(
                [
                    "git",
                    "-C",
                    str(ROOT),
                    "archive",
                    "--format=tar.gz",
                    f"--prefix={FOLDER}/",
                    f"--output={archive}",
                    "HEAD",
                ]
            )
            self.runner.run(self.slice.send(archive))
        self.runner.run(self.slice.ssh(f"tar -xzf {FOLDER}.tar.gz && bash {FOLDER}/tpu/worker.sh install"))
        for pair in self.options.copy:
            source, _, target = pair.partition("=")
            self.runner.run(self.slice.worker("copy", source, target))
        for command in self.options.setup:
            self.runner.run(self.slice.ssh(command))

    def run(self) -> None:
        """Starts the trainer and its tools service on every worker in the background."""
        if not self.options.train:
            raise LaunchError(
                "nothing to run: give the trainer's arguments after --, e.g. -- --config=configs/rl.py:7b"
            )
        self.runner.run(self.slice.worker("start", *_tools(self.options), "--", *self.options.train))

    def status(self) -> str:
        """Returns the distinct states of the workers: running, done, failed, or stopped (not started, or rebooted)."""
        answer = self.runner.read(self.slice.worker("status"), "done")
        return " ".join(sorted({line.split()[-1] for line in answer.splitlines() if line.split()}))

    def logs(self) -> None:
        """Downloads the log of every worker, each into its own file."""
        folder = Path(self.options.output)
        if not self.runner.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        self.runner.run(self.slice.worker("logs", flags=[f"--output-directory={folder}"]))

    def stop(self) -> None:
        self.runner.run(self.slice.worker("stop"))

    def delete(self) -> None:
        self.runner.run(self.slice.delete())

    def watch(self) -> None:
        """Follows the run to its end. A lost slice is requested again; a failed trainer is not restarted."""
        restarts = 0
        while True:
            state = self.state()
            words = self._status_of(state)
            if words == "done":
                self.logs()
                print(f"{self.slice.name}: the run is complete; `delete` releases the slice", flush=True)
                return
            if "failed" in words:
                self.stop()  # the other workers hang in collectives with the failed one
                self.logs()
                raise LaunchError(f"the trainer failed; see {self.options.output}")
            if state in GONE or "stopped" in words:
                restarts += 1
                if restarts > self.options.max_restarts:
                    raise LaunchError(f"{self.slice.name} was lost {restarts} times: --max-restarts")
                print(f"{self.slice.name}: {state}; starting again ({restarts})", flush=True)
                self._restart(state)
            time.sleep(self.options.poll)

    def _status_of(self, state: str) -> str:
        if state != "ACTIVE":
            return ""
        try:
            return self.status()
        except LaunchError as error:  # a machine that is being preempted does not answer; the next poll shows its state
            print(error, flush=True)
            return ""

    def _restart(self, state: str) -> None:
        if state in GONE:
            if state != "NOT_FOUND":
                self.delete()
            self.create()
            self.wait()
            self.install()
        else:
            self.stop()
        self.run()

    def up(self) -> None:
        self.create()
        self.wait()
        self.install()
        self.run()
        self.watch()


def _tools(options: argparse.Namespace) -> list[str]:
    indexes = [("--text-index", options.text_index), ("--image-index", options.image_index)]
    return [f"{flag}={path}" for flag, path in indexes if path]


def parse(argv: Sequence[str]) -> tuple[str, Slice, argparse.Namespace]:
    argv = list(argv)
    train = argv[argv.index("--") + 1 :] if "--" in argv else []
    parser = argparse.ArgumentParser(
        prog="tpu/launch.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = ["up", "create", "wait", "install", "run", "watch", "status", "logs", "stop", "delete"]
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("--name", required=True, help="name of the request and of its node")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="default: the project of gcloud's configuration")
    parser.add_argument("--accelerator-type", default="", help="v4-N, v5litepod-N, v5p-N or v6e-N")
    parser.add_argument("--runtime-version", default="", help="default: the image of the accelerator type")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", help="preemptible capacity")
    kind.add_argument("--reserved", action="store_true", help="capacity from a reservation of the project")
    parser.add_argument(
        "--service-account", default="", help="service account of the workers; it reads and writes the buckets"
    )
    parser.add_argument(
        "--copy",
        action="append",
        default=[],
        metavar="gs://FROM=TO",
        help="copy a folder or file to every worker, TO is relative to the repository; repeatable",
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="shell command for every worker, run after the installation; repeatable",
    )
    parser.add_argument(
        "--text-index", default="", help="text index folder on the workers; starts a tools service on each"
    )
    parser.add_argument("--image-index", default="", help="image index folder on the workers, likewise")
    parser.add_argument("--output", default="logs", help="folder for the workers' logs")
    parser.add_argument("--poll", type=float, default=30.0, help="seconds between polls of the state")
    parser.add_argument("--max-restarts", type=int, default=50, help="maximum number of restarts after a lost slice")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    options = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    options.train = train
    runtime = options.runtime_version
    if options.verb in ("up", "create", "watch") and not runtime:
        known = [image for prefix, image in RUNTIMES.items() if options.accelerator_type.startswith(prefix)]
        if not known:
            parser.error(
                f"--accelerator-type {options.accelerator_type!r}: none of {', '.join(f'{p}N' for p in RUNTIMES)};"
                " for a later one, name its image with --runtime-version (v7x is served through GKE only)"
            )
        runtime = known[0]
    if options.verb in ("up", "run", "watch"):
        root = _run_root(train)
        if root.startswith("gs://"):
            parser.error(f"run.root={root}: a run directory is a path; mount the bucket on every worker with --setup")
        if options.spot and not root.startswith("/mnt/"):
            parser.error(
                "--spot without --config.run.root=/mnt/...: a preempted slice loses its disks, checkpoints"
                " included; mount a file system that outlives it on every worker, with --setup"
            )
    if any("=" not in pair for pair in options.copy):
        parser.error(f"--copy {options.copy}: each is FROM=TO")
    slice_ = Slice(options.name, options.zone, options.accelerator_type, runtime, options.project, options.spot,
                   options.reserved, options.service_account)  # fmt: skip
    return options.verb, slice_, options


def _run_root(train: Sequence[str]) -> str:
    """Returns `run.root` from the trainer's arguments."""
    root = ""
    for word, following in zip(train, [*train, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--config.run.root":
            root = value if equals else following
    return root


def main(argv: Sequence[str] | None = None) -> int:
    verb, slice_, options = parse(sys.argv[1:] if argv is None else argv)
    launch = Launch(slice_, CommandRunner(options.dry_run), options)
    try:
        result = getattr(launch, verb)()
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{slice_.name} continues without this watch; `watch` resumes watching", file=sys.stderr)
        return 130
    if isinstance(result, str):
        print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
