"""All tests run on the CPU, in float32, and share one cache of compiled programs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

# Before anything imports jax. The cache is what makes a second run, and the second worker, quick.
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax-tests"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download something fails at once instead
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: two workers on two cores

import pytest  # noqa: E402 - after the environment is set
from hypothesis import settings  # noqa: E402

settings.register_profile("no_deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no_deadline")


@pytest.fixture
def two_processes():
    """Runs a program as two processes of one JAX on the loopback interface; what each prints last, read as JSON."""

    def run(program: str, *, devices_each: int = 1) -> list:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}",
        }
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                env=environment | {"JAX_PROCESS_ID": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=300) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors[-3000:]
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]  # Gloo prints its own lines before

    return run
