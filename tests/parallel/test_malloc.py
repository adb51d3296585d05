"""Freed memory is returned to the operating system."""

import ctypes
import subprocess
import sys

import pytest

# All blocks but the last are freed; the last one keeps the heap from shrinking without malloc_trim.
PROGRAM = """
import os
from dv2_jax.parallel.malloc import malloc_trim

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [bytes(1_000) for _ in range(100_000)]
kept = blocks[-1]
del blocks
before = resident()
malloc_trim()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_goes_back_to_the_machine():
    """Catches: a process that keeps the freed memory of compilation until it ends."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50_000_000  # of the 100 MB that were freed
