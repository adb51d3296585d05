"""Settings of all tests: CPU, float32, and one shared cache of compiled programs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

# Set before jax is imported. The persistent compilation cache speeds up later runs and the other worker.
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
    """Returns a function that runs a program as two JAX processes over loopback and parses each one's last line as JSON."""

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
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]  # Gloo prints lines of its own first

    return run


@pytest.fixture
def no_compilation_cache():
    """Turns off JAX's compilation cache: executables for a TPU cannot be deserialized without one."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    caching = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax reads the setting only when the cache is initialized
    yield
    jax.config.update("jax_enable_compilation_cache", caching)
    compilation_cache.reset_cache()
