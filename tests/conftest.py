"""Settings of all tests: CPU, float32, and one shared cache of compiled programs."""

import json
import os
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

from tests.host_processes import run_on_hosts  # noqa: E402

settings.register_profile("no_deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no_deadline")


@pytest.fixture
def two_processes():
    """Returns a function that runs a program as two JAX processes over loopback and parses each one's last line as JSON."""

    def run(program: str, *, devices_each: int = 1) -> list:
        outputs = run_on_hosts([sys.executable, "-c", program], devices_each=devices_each)
        return [json.loads(out.splitlines()[-1]) for out in outputs]  # Gloo prints lines of its own first

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
