"""The launcher against gcloud's command parser, and against a fake cloud of two local workers that can be preempted."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = ["--name=deep", "--zone=us-east5-a", "--project=lab", "--accelerator-type=v5p-64"]
TRAIN = ["--", "--config=configs/rl.py:7b", "--config.run.root=/mnt/lab-runs/runs"]


def launch(*arguments, environment=None, timeout=60):
    return subprocess.run([sys.executable, str(ROOT / "tpu/launch.py"), *arguments], capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, **(environment or {})})  # fmt: skip


def commands(shown):
    return [shlex.split(line[2:], comments=True) for line in shown.splitlines() if line.startswith("$ ")]


def test_a_dry_run_prints_every_command_and_runs_nothing(tmp_path):
    """Catches: a step that is missing or out of order, and a flag that does not reach gcloud."""
    shown = launch("up", *BASE, "--spot", "--copy=gs://lab/cold=models/cold", "--text-index=models/wiki", "--setup=sudo mount /mnt/runs",
                   "--dry-run", *TRAIN,
                   environment={"PATH": str(tmp_path)})  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    printed = commands(shown.stdout)
    where = ["--zone=us-east5-a", "--project=lab"]
    tpus = ["gcloud", "compute", "tpus"]
    assert printed[0] == [*tpus, "queued-resources", "create", "deep", *where, "--node-id=deep",
                          "--accelerator-type=v5p-64", "--runtime-version=v2-alpha-tpuv5", "--spot"]  # fmt: skip
    assert [words[:5] for words in printed[1:4]] == [
        [*tpus, "queued-resources", "list"], ["git", "-C", str(ROOT), "archive", "--format=tar.gz"], [*tpus, "tpu-vm", "scp"],
    ]  # fmt: skip
    assert printed[4:8] == [
        [*tpus, "tpu-vm", "ssh", "deep", *where, "--worker=all", f"--command={command}"]
        for command in (
            "tar -xzf dv2_jax.tar.gz && bash dv2_jax/tpu/worker.sh install",
            "bash dv2_jax/tpu/worker.sh copy gs://lab/cold models/cold",
            "sudo mount /mnt/runs",
            "bash dv2_jax/tpu/worker.sh start --text-index=models/wiki -- --config=configs/rl.py:7b"
            " --config.run.root=/mnt/lab-runs/runs",
        )
    ]
    assert printed[-1][-1] == "--output-directory=logs"


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_accepts_every_command(tmp_path):
    """Catches: a wrong or removed flag; gcloud parses the commands without an account."""
    shown = launch(
        "up", *BASE, "--reserved", "--service-account=runner@lab", "--copy=gs://a=b", "--dry-run", *TRAIN
    ).stdout
    shown += launch("delete", *BASE, "--dry-run").stdout
    wanted = sorted({shlex.join(words) for words in commands(shown) if words[0] == "gcloud"})
    assert len(wanted) == 9  # create, list, scp, five ssh, delete
    wrong = "gcloud compute tpus queued-resources delete deep --forc"
    listed = tmp_path / "commands.json"
    listed.write_text(json.dumps([{"command_string": command} for command in [*wanted, wrong]]))
    parsed = subprocess.run(["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={listed}"],
                            capture_output=True, text=True, timeout=100)  # fmt: skip
    if parsed.returncode:
        pytest.skip(f"this gcloud cannot check commands: {parsed.stderr[:200]}")
    verdicts = [(verdict["success"], verdict["error_message"]) for verdict in json.loads(parsed.stdout)]
    assert verdicts[:-1] == [(True, None)] * len(wanted)
    assert not verdicts[-1][0], "the check accepts anything"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", *BASE, "--spot", "--dry-run", "--", "--config=configs/rl.py:7b"], "loses its disks"),
        (["up", *BASE, "--dry-run", "--", "--config=x.py", "--config.run.root", "gs://lab/runs"], "mount the bucket"),
        (["create", "--name=a", "--zone=b", "--accelerator-type=tpu7x-8"], "GKE"),
        (["install", *BASE, "--copy=gs://bucket"], "each is FROM=TO"),
        (["run", *BASE, "--dry-run"], "nothing to run"),
    ],
)
def test_invalid_options_are_rejected_with_the_fix(arguments, message):
    shown = launch(*arguments)
    assert shown.returncode and message in shown.stderr


# A fake gcloud: the workers run their commands for real, each in its own home directory.
CLOUD = r"""#!/usr/bin/env bash
cloud="$FAKE_CLOUD"; words="$*"
echo "$words" >>"$cloud/calls"
case "$words" in
  *"queued-resources create"*) echo ACTIVE >"$cloud/state"; rm -rf "$cloud"/home*; mkdir "$cloud/home0" "$cloud/home1" ;;
  *"queued-resources delete"*) rm "$cloud/state" ;;
  *"queued-resources list"*)
    # A running slice is preempted at the second poll of its state.
    if [[ -f "$cloud/state" && ! -f "$cloud/preempted" ]] && compgen -G "$cloud/home*/worker/trainer.pid" >/dev/null; then
      touch "$cloud/preempted"; echo SUSPENDED >"$cloud/state"
      for home in "$cloud"/home*; do kill -KILL -- "-$(cat "$home/worker/trainer.pid")" 2>/dev/null; done
    fi
    cat "$cloud/state" 2>/dev/null || true ;;
  *"tpu-vm scp"*) for home in "$cloud"/home*; do cp "$5" "$home/dv2_jax.tar.gz"; done ;;
  *"tpu-vm ssh"*)
    for word in "$@"; do case "$word" in --command=*) command="${word#--command=}";; --output-directory=*) output="${word#*=}";; esac; done
    command="${command/worker.sh install/worker.sh status}"  # the dependencies are here already
    for home in "$cloud"/home*; do
      name="$(basename "$home")"
      HOME="$home" DV2_STATE="$home/worker" bash -c "cd; $command" >"$cloud/out.$name" 2>&1 || { cat "$cloud/out.$name"; exit 1; }
      if [[ -n "${output:-}" ]]; then cp "$cloud/out.$name" "$output/$name.log"; else cat "$cloud/out.$name"; fi
    done ;;
esac
"""
TRAINER = """import sys, time, pathlib
root = pathlib.Path(next(a for a in sys.argv if a.startswith("--config.run.root=")).split("=")[1])
while not (root / "go").exists():
    time.sleep(0.05)
print("trained with", sys.argv[1:])
sys.exit(int((root / "go").read_text()))
"""


@pytest.fixture
def cloud(tmp_path):
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(CLOUD)
    gcloud.chmod(gcloud.stat().st_mode | stat.S_IXUSR)
    # A fake trainer that exits when the test decides; `-m` finds it before the package.
    fake_package = tmp_path / "python"
    (fake_package / "dv2_jax").mkdir(parents=True)
    (fake_package / "dv2_jax" / "__init__.py").write_text("")
    (fake_package / "dv2_jax" / "train.py").write_text(TRAINER)
    python = tmp_path / "bin" / "python-of-the-worker"
    python.write_text(f'#!/bin/bash\ncd "{fake_package}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "calls").touch()
    environment = {
        "PATH": f"{gcloud.parent}:{os.environ['PATH']}",
        "FAKE_CLOUD": str(tmp_path),
        "DV2_PYTHON": str(python),
    }
    yield tmp_path, environment
    for pid in tmp_path.glob("home*/worker/*.pid"):
        subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], capture_output=True)


def run_up(cloud, exit_code):
    folder, environment = cloud
    runs = folder / "runs"
    runs.mkdir()
    (runs / "go").write_text(str(exit_code)) if exit_code else None
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tpu/launch.py"), "up", *BASE, "--poll=0.2", f"--output={folder / 'logs'}", "--",
         "--config=x.py", f"--config.run.root={runs}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    return process, runs


def test_a_preempted_slice_is_requested_again_and_the_run_continues(cloud):
    """Catches: a watch that ends with the slice, does not install on the new machines, or starts the run twice."""
    process, runs = run_up(cloud, exit_code=0)
    folder = cloud[0]
    try:
        while process.poll() is None:
            calls = (folder / "calls").read_text()
            if calls.count("worker.sh start") == 2 and len(list(folder.glob("home*/worker/trainer.pid"))) == 2:
                (runs / "go").write_text("0")
                break
        shown = process.communicate(timeout=300)[0]
    finally:
        process.kill()
    assert process.returncode == 0, shown
    calls = (folder / "calls").read_text()
    assert [
        calls.count(word) for word in ("resources create", "resources delete", "worker.sh install", "worker.sh start")
    ] == [2, 1, 2, 2]
    for worker in ("home0", "home1"):
        assert "trained with ['--config=x.py'" in (folder / "logs" / f"{worker}.log").read_text()


def test_a_trainer_that_fails_is_not_started_again(cloud):
    """Catches: a crash that is repeated endlessly on a paid slice."""
    (cloud[0] / "preempted").touch()
    process, _ = run_up(cloud, exit_code=3)
    shown = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and "the trainer failed" in shown
    assert (cloud[0] / "calls").read_text().count("worker.sh start") == 1
    assert "trained with" in (cloud[0] / "logs" / "home1.log").read_text()
