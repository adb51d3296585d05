"""Gradients on meshes. Catches: a mean per device instead of over the step, an all-reduce over too many mesh axes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_shape_of_the_mesh_does_not_change_the_gradient():
    """Data-parallel, FSDP, tensor-parallel and context-parallel meshes give the gradient of a single device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.gradients_on_meshes"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-2000:]
