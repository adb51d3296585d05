"""Several hosts as one program: joining them, and values that all of them must agree on.

Every process runs the same program in the same order, so whatever only one process can know (a clock, a signal, the
length of its own rows) must be agreed on before it decides a branch or a shape; otherwise the next collective hangs.
All functions but ``is_main``, ``process_index``, ``process_count`` and ``share`` are collective: every process calls
them, in the same order.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PIECE = 1 << 16  # bytes of text that a process sends at once: one shape, so that one program is compiled for all texts
T = TypeVar("T")


def initialize(environ: dict[str, str] | None = None, cpu_devices: int = 1) -> None:
    """Joins the other processes, if there are any; before anything asks JAX for devices.

    Where the CPU is the only kind of device, it becomes ``cpu_devices`` of them, unless ``XLA_FLAGS`` says how many:
    two cores compute two halves of a batch faster than they share the small matrices of a tiny model. Its programs
    use the widest vectors (by default half of AVX-512's), and threads of one device only do not help another one where
    there is no core left to; unless ``XLA_FLAGS`` says otherwise.

    Explicit: ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.
    Otherwise a TPU host or a Slurm job of several tasks is detected by JAX. Any other machine stays alone.
    Raises ValueError when only some of the three variables are set.
    """
    environ = os.environ if environ is None else environ
    if cpu_devices > 1 and "xla_force_host_platform_device_count" not in environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices)
        except RuntimeError:  # a program that used JAX before keeps the devices it has
            warnings.warn(f"JAX runs already: mesh.cpu_devices = {cpu_devices} changes nothing", stacklevel=2)
    if not _on_tpu_host(environ):
        _set_cpu_flags(environ, cpu_devices)
    given = [name for name in (COORDINATOR, COUNT, INDEX) if environ.get(name)]
    if given:
        missing = [name for name in (COORDINATOR, COUNT, INDEX) if name not in given]
        if missing:
            raise ValueError(f"{', '.join(given)} set, but {', '.join(missing)} missing: set all three or none")
        jax.distributed.initialize(environ[COORDINATOR], int(environ[COUNT]), int(environ[INDEX]))
    elif _on_tpu_host(environ) or int(environ.get("SLURM_NTASKS", "1")) > 1:
        jax.distributed.initialize()
    if jax.distributed.is_initialized() and jax.process_count() > 1 and jax.default_backend() == "cpu":
        _connect()


def _set_cpu_flags(environ: dict[str, str], cpu_devices: int) -> None:
    flags = {"xla_cpu_prefer_vector_width": "512"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if 1 < cores <= cpu_devices:
        flags["xla_cpu_multi_thread_eigen"] = "false"
    given = environ.get("XLA_FLAGS", "")
    environ["XLA_FLAGS"] = " ".join(
        [given, *(f"--{name}={flags[name]}" for name in flags if name not in given)]
    ).strip()


def _connect() -> None:
    """Sums over all devices while no process is busy: the CPU's collectives fail when devices that first have something
    to exchange do not meet within half a minute, and compiling may keep one of them longer."""
    place = NamedSharding(Mesh(np.array(jax.devices()), "all"), PartitionSpec("all"))
    ones = jax.make_array_from_callback((jax.device_count(),), place, lambda _: np.ones(1, np.int32))
    jax.block_until_ready(jax.jit(jnp.sum)(ones))


def _on_tpu_host(environ: dict[str, str]) -> bool:
    """A machine with TPU devices and their library; not one that only compiles for TPUs."""
    if environ.get("JAX_PLATFORMS", "").startswith("cpu") or importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def is_main() -> bool:
    """Whether this process writes logs, reports and exports. Checkpoints are written by all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here. ``name`` must be the same everywhere: a mismatch is an error."""
    multihost_utils.sync_global_devices(name)


def agree(value: Any) -> Any:
    """Process 0's ``value``, on every process. Anything JSON can hold; tuples come back as lists."""
    return value if jax.process_count() == 1 else gather_json(value if is_main() else None)[0]


def any_process(flag: bool) -> bool:
    """Whether ``flag`` holds on at least one process, e.g. an interrupt that only one host received."""
    return largest(int(flag)) > 0


def largest(value: int) -> int:
    """The maximum over all processes, e.g. of the bucket that each one's rows need. Below 2**31."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def gather_json(value: Any) -> list[Any]:
    """Every process's ``value``, in the order of their indices, on every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros((-(-int(lengths.max()) // PIECE), PIECE), np.uint8)
    padded.flat[: text.size] = text
    rows = np.concatenate([multihost_utils.process_allgather(piece) for piece in padded], axis=1).astype(np.uint8)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths)]


def share(items: Sequence[T]) -> list[T]:
    """This process's part of ``items``, which all processes know: every n-th, so that each has its part of any stretch."""
    return [items[i] for i in range(jax.process_index(), len(items), jax.process_count())]


def gather_shares(own: Sequence[Any]) -> list[Any]:
    """What became of the items that ``share`` divided, in their order, on every process. Anything JSON can hold."""
    parts = gather_json(list(own))
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)]
