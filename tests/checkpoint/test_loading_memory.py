"""Host memory of loading. Catches: a loader that holds all tensors, or a stacked array of all layers, in host memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are read from Linux's /proc")
def test_loading_takes_at_most_twice_the_largest_tensor_on_top_of_the_arrays(tmp_path):
    """Loads 270 MiB of arrays onto a mesh of four CPU devices, whose memory is host memory."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "MALLOC_MMAP_THRESHOLD_": "1048576",  # freed arrays are returned to the system immediately
    }
    script = Path(__file__).with_name("memory_of_loading.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path / "x")], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
