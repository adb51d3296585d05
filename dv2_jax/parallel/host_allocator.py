"""How the C library's allocator hands out memory on a machine whose processor is the device."""

from __future__ import annotations

import ctypes

# <malloc.h> of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER = -1


def keep_freed_memory() -> bool:
    """Makes this process reuse what it frees instead of giving it back. Returns whether the C library takes that (glibc).

    XLA asks for a program's temporaries anew whenever it runs. By default glibc maps so large a piece, and the kernel
    clears and enters its pages one by one: a sixth of a small model's gradient. The resident size stays at its peak.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # One heap that only grows. The arenas of threads cannot hold large pieces and would map them.
    return all(library.mallopt(*option) for option in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER)))
