"""A training run on a Cloud TPU slice, from the request to the logs.

    python tpu/launch.py up --name deepeyes --zone us-east5-a --accelerator-type v5p-64 --spot \\
        --copy gs://bucket/models/cold-start-7b=models/cold-start-7b \\
        -- --config=configs/rl.py:7b --config.run.root=/mnt/bucket/runs

`up` is `create`, `wait`, `install`, `run` and `watch`; each is a verb of its own, as are `status`, `logs`, `stop` and
`delete`. `watch` follows the run to its end: after a preemption it asks for the slice again and starts the same
command, which continues from the last checkpoint. `--dry-run` prints every command and runs none.

Needs gcloud, logged in, with ssh keys known to the agent. What happens on the machines is in `worker.sh`.
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
FOLDER = "dv2_jax"  # below the home directory of every worker

# Cloud TPU software images by the beginning of the accelerator type. v7x is not here: Google serves it through GKE.
RUNTIMES = {
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "NOT_FOUND")  # states that a request does not come back from


class LaunchError(Exception):
    """What went wrong and what to do; printed without a trace."""


@dataclass(frozen=True)
class Slice:
    """Which machines, and how gcloud is asked for them."""

    name: str
    zone: str
    accelerator_type: str  # as gcloud writes it: the number counts TensorCores on v4 and v5p, two to a chip
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
        # A list, not `describe`: a request that is gone gives an empty answer there, and an error here.
        return [*self.gcloud("queued-resources", "list"), f"--filter=name~/{self.name}$", "--format=value(state.state)"]

    def delete(self) -> list[str]:
        return [*self.gcloud("queued-resources", "delete", self.name), "--force", "--quiet"]

    def ssh(self, command: str, *flags: str) -> list[str]:
        return [*self.gcloud("tpu-vm", "ssh", self.name), "--worker=all", f"--command={command}", *flags]

    def send(self, file: str) -> list[str]:
        return [*self.gcloud("tpu-vm", "scp", file, f"{self.name}:{FOLDER}.tar.gz"), "--worker=all"]

    def worker(self, verb: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
        return self.ssh(shlex.join(["bash", f"{FOLDER}/tpu/worker.sh", verb, *arguments]), *flags)


class Shell:
    """Runs commands, or prints them."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def run(self, command: list[str]) -> None:
        print(f"$ {shlex.join(command)}", flush=True)
        if not self.dry_run and (code := subprocess.run(command).returncode):
            raise LaunchError(f"exit code {code} of: {shlex.join(command)}")

    def read(self, command: list[str], pretended: str) -> str:
        """Standard output; in a dry run the command is printed and `pretended` is its answer."""
        if self.dry_run:
            print(f"$ {shlex.join(command)}   # until: {pretended.replace(chr(10), ', ')}", flush=True)
            return pretended
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LaunchError(f"exit code {done.returncode} of: {shlex.join(command)}\n{done.stderr.strip()}")
        return done.stdout.strip()


class Launch:
    def __init__(self, slice_: Slice, shell: Shell, options: argparse.Namespace):
        self.slice, self.shell, self.options = slice_, shell, options

    def create(self) -> None:
        self.shell.run(self.slice.create())

    def state(self) -> str:
        return self.shell.read(self.slice.state(), "ACTIVE") or "NOT_FOUND"

    def wait(self) -> None:
        """Until the request is granted."""
        shown = ""
        while (state := self.state()) != "ACTIVE":
            if state in GONE:
                raise LaunchError(f"the request {self.slice.name} is {state}: delete it and create it again")
            if state != shown:
                print(f"{self.slice.name}: {state}", flush=True)
                shown = state
            time.sleep(self.options.poll)

    def install(self) -> None:
        """The committed source of this repository, its dependencies, and what `--copy` and `--setup` say, on every worker."""
        if not self.shell.dry_run:
            status = ["git", "-C", str(ROOT), "status", "--porcelain"]
            if changed := subprocess.run(status, capture_output=True, text=True).stdout.splitlines():
                print(f"{len(changed)} files are changed or new and not committed: the workers get HEAD", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            archive = f"{folder}/{FOLDER}.tar.gz"
            self.shell.run(
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
            self.shell.run(self.slice.send(archive))
        self.shell.run(self.slice.ssh(f"tar -xzf {FOLDER}.tar.gz && bash {FOLDER}/tpu/worker.sh install"))
        for pair in self.options.copy:
            source, _, target = pair.partition("=")
            self.shell.run(self.slice.worker("copy", source, target))
        for command in self.options.setup:
            self.shell.run(self.slice.ssh(command))

    def run(self) -> None:
        """Starts the trainer with its tools on every worker, and returns."""
        if not self.options.train:
            raise LaunchError(
                "nothing to run: give the trainer's arguments after --, e.g. -- --config=configs/rl.py:7b"
            )
        self.shell.run(self.slice.worker("start", *_tools(self.options), "--", *self.options.train))

    def status(self) -> str:
        """One word per worker: running, done, failed, or stopped (it never started, or its machine was restarted)."""
        answer = self.shell.read(self.slice.worker("status"), "done")
        return " ".join(sorted({line.split()[-1] for line in answer.splitlines() if line.split()}))

    def logs(self) -> None:
        """The log of every worker, each in its own file."""
        folder = Path(self.options.output)
        if not self.shell.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        self.shell.run(self.slice.worker("logs", flags=[f"--output-directory={folder}"]))

    def stop(self) -> None:
        self.shell.run(self.slice.worker("stop"))

    def delete(self) -> None:
        self.shell.run(self.slice.delete())

    def watch(self) -> None:
        """To the end of the run. A lost slice is asked for again; a failed trainer is not started again."""
        restarts = 0
        while True:
            state = self.state()
            words = self._status_of(state)
            if words == "done":
                self.logs()
                print(f"{self.slice.name}: the run is complete; `delete` gives the slice back", flush=True)
                return
            if "failed" in words:
                self.stop()  # the other workers wait for the one that is gone
                self.logs()
                raise LaunchError(f"the trainer failed; see {self.options.output}")
            if state in GONE or "stopped" in words:
                restarts += 1
                if restarts > self.options.max_restarts:
                    raise LaunchError(f"{self.slice.name} was lost {restarts} times: --max-restarts")
                print(f"{self.slice.name}: {state}; starting again ({restarts})", flush=True)
                self._again(state)
            time.sleep(self.options.poll)

    def _status_of(self, state: str) -> str:
        if state != "ACTIVE":
            return ""
        try:
            return self.status()
        except LaunchError as error:  # a machine that is being taken away does not answer; its state follows
            print(error, flush=True)
            return ""

    def _again(self, state: str) -> None:
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
    parser.add_argument("--name", required=True, help="of the request and of its node")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="default: gcloud's own")
    parser.add_argument("--accelerator-type", default="", help="v4-N, v5litepod-N, v5p-N or v6e-N")
    parser.add_argument("--runtime-version", default="", help="default: the image of the accelerator type")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    kind.add_argument("--reserved", action="store_true", help="from a reservation of the project")
    parser.add_argument("--service-account", default="", help="of the machines; it reads and writes the buckets")
    parser.add_argument(
        "--copy",
        action="append",
        default=[],
        metavar="gs://FROM=TO",
        help="a folder or file for every worker, TO below the repository; repeatable",
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="for the shell of every worker, after the installation; repeatable",
    )
    parser.add_argument("--text-index", default="", help="folder on the worker: starts a tools service on every one")
    parser.add_argument("--image-index", default="", help="likewise, of pictures")
    parser.add_argument("--output", default="logs", help="folder for the workers' logs")
    parser.add_argument("--poll", type=float, default=30.0, help="seconds between two looks at the state")
    parser.add_argument("--max-restarts", type=int, default=50, help="of a run whose slice was lost")
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
                "--spot without --config.run.root=/mnt/...: a slice that is taken away takes its disks with it, checkpoints"
                " included; mount a file system that outlives it on every worker, with --setup"
            )
    if any("=" not in pair for pair in options.copy):
        parser.error(f"--copy {options.copy}: each is FROM=TO")
    slice_ = Slice(options.name, options.zone, options.accelerator_type, runtime, options.project, options.spot,
                   options.reserved, options.service_account)  # fmt: skip
    return options.verb, slice_, options


def _run_root(train: Sequence[str]) -> str:
    """The run directory's parent, as the trainer will read it."""
    root = ""
    for word, following in zip(train, [*train, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--config.run.root":
            root = value if equals else following
    return root


def main(argv: Sequence[str] | None = None) -> int:
    verb, slice_, options = parse(sys.argv[1:] if argv is None else argv)
    launch = Launch(slice_, Shell(options.dry_run), options)
    try:
        result = getattr(launch, verb)()
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{slice_.name} goes on without this watch; `watch` picks it up again", file=sys.stderr)
        return 130
    if isinstance(result, str):
        print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
