"""All tests run on the CPU, in float32, and share one cache of compiled programs."""

import os
from pathlib import Path

# Before anything imports jax. The cache is what makes a second run, and the second worker, quick.
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax-tests"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download something fails at once instead
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: two workers on two cores

from hypothesis import settings  # noqa: E402 - after the environment is set

settings.register_profile("no_deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no_deadline")
