"""Catches: a row whose pages are on another device, a random number or stop state that depends on the shard, samples
that change when heads or rows are sharded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_tokens_on_four_devices_are_those_of_one():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.engine.roll_out_on_mesh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 devices" in done.stdout
