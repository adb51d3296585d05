"""Catches a loader that holds all tensors, or a whole stacked array of all layers, in host memory beside the devices'."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are read from Linux's /proc")
def test_loading_takes_at_most_two_of_the_largest_tensor_beside_the_arrays(tmp_path):
    """270 MiB of arrays on a mesh of four CPU devices, whose memory is the host's."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "MALLOC_MMAP_THRESHOLD_": "1048576",  # freed arrays go back to the system at once
    }
    script = Path(__file__).with_name("memory_of_loading.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path / "x")], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
