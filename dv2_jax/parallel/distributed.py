"""Multi-process runs: initialization, and values that all processes must agree on.

Every process runs the same program in the same order. A value that only one process knows (a clock, a signal, the length
of its rows) must be agreed on before it decides a branch or a shape; otherwise the next collective hangs. All functions
but `is_main`, `process_index`, `process_count` and `shard_for_process` are collective: every process must call them, in
the same order.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
CHUNK_BYTES = 1 << 16  # bytes of text per all-gather: a fixed shape, so that one program serves texts of any length
T = TypeVar("T")


def initialize(environ: dict[str, str] | None = None, cpu_devices: int = 1) -> None:
    """Initializes `jax.distributed` and the CPU backend; must be called before JAX is asked for devices.

    On machines that have only a CPU, it becomes `cpu_devices` devices: two cores compute two halves of a batch faster
    than they share the small matrices of a tiny model. XLA:CPU is set to 512-bit vectors (its default is half of
    AVX-512), and Eigen multi-threading is turned off if every core already has a CPU device. Values in `XLA_FLAGS` take
    precedence.

    The processes are given by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`; without these, JAX detects a TPU host or a Slurm job of several tasks. Any other run has a single
    process.
    Raises ValueError if only some of the three variables are set.
    """
    environ = os.environ if environ is None else environ
    if cpu_devices > 1 and "xla_force_host_platform_device_count" not in environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices)
        except RuntimeError:  # the backend is initialized already, and its devices are fixed
            warnings.warn(f"JAX is initialized already: mesh.cpu_devices = {cpu_devices} has no effect", stacklevel=2)
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
        _warm_up_collectives()


def _set_cpu_flags(environ: dict[str, str], cpu_devices: int) -> None:
    flags = {"xla_cpu_prefer_vector_width": "512"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if 1 < cores <= cpu_devices:
        flags["xla_cpu_multi_thread_eigen"] = "false"
    given = environ.get("XLA_FLAGS", "")
    environ["XLA_FLAGS"] = " ".join(
        [given, *(f"--{name}={flags[name]}" for name in flags if name not in given)]
    ).strip()


def _warm_up_collectives() -> None:
    """Runs one all-reduce up front.

    Gloo times out after 30 s if the first collective has to wait for another process that is still compiling.
    """
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "all"), PartitionSpec("all"))
    ones = jax.make_array_from_callback((jax.device_count(),), sharding, lambda _: np.ones(1, np.int32))
    jax.block_until_ready(jax.jit(jnp.sum)(ones))


def _on_tpu_host(environ: dict[str, str]) -> bool:
    """Tests if this machine has TPU devices and libtpu; machines that only compile for TPUs have no devices."""
    if environ.get("JAX_PLATFORMS", "").startswith("cpu") or importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def is_main() -> bool:
    """Tests if this process writes logs, reports and exports. Checkpoints are written by all processes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached this point. Raises if `name` differs between processes."""
    multihost_utils.sync_global_devices(name)


def broadcast_from_main(value: Any) -> Any:
    """Returns the main process's `value` on every process. It must be JSON serializable; tuples become lists."""
    return value if jax.process_count() == 1 else allgather_json(value if is_main() else None)[0]


def any_process(flag: bool) -> bool:
    """Tests if `flag` is true on at least one process, e.g. for an interrupt that only one host received."""
    return process_max(int(flag)) > 0


@contextmanager
def raise_together(error: type[Exception], *arguments: Any) -> Iterator[None]:
    """If the block raises `error` on one process, all raise it at its end: the others with `arguments`. Collective."""
    raised = None
    try:
        yield
    except error as found:
        raised = found
    if any_process(raised is not None):
        raise raised or error(*arguments)


def process_max(value: int) -> int:
    """Returns the maximum of `value` (below 2**31) over all processes, e.g. of the bucket that each one's rows need."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def allgather_json(value: Any) -> list[Any]:
    """Returns every process's JSON-serializable `value`, ordered by process index, on every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros((-(-int(lengths.max()) // CHUNK_BYTES), CHUNK_BYTES), np.uint8)
    padded.flat[: text.size] = text
    rows = np.concatenate([multihost_utils.process_allgather(chunk) for chunk in padded], axis=1).astype(np.uint8)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths)]


def shard_for_process(items: Sequence[T]) -> list[T]:
    """Returns this process's shard of `items`, which all processes know: every n-th, so that any slice is balanced."""
    return [items[i] for i in range(jax.process_index(), len(items), jax.process_count())]


def allgather_shards(results: Sequence[Any]) -> list[Any]:
    """All-gathers the JSON-serializable results of the items of `shard_for_process`, in the items' original order."""
    shards = allgather_json(list(results))
    return [shard[i] for i in range(len(shards[0])) for shard in shards if i < len(shard)]
