"""Ahead-of-time compilation for described TPU slices with libtpu's compiler, on any machine.

This proves that a program compiles, and shows how much memory, arithmetic and communication the compiler planned. It
measures neither speed nor numerics, because nothing runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from dv2_jax.aot import hlo_bytes, hlo_cost, hlo_parser
from dv2_jax.aot.hlo_cost import Costs, analyze
from dv2_jax.config import UserError
from dv2_jax.files import atomic_write


class TopologyError(UserError, ValueError):
    """The topology is unknown, or libtpu is not installed."""


@dataclass(frozen=True)
class Compiled:
    """The compiler's plan for one device; sizes in bytes. `error` is the reason if compilation failed."""

    seconds: float
    arguments: int = 0
    outputs: int = 0  # not aliased with a donated argument
    temporaries: int = 0
    peak: int = 0  # as reported by the compiler; it may reserve more
    costs: Costs | None = None  # None: the HLO text is not available
    error: str = ""

    @property
    def peak_memory(self) -> int:
        """Returns the larger of the reported peak and the sum of the reserved buffers, in bytes."""
        return max(self.peak, self.arguments + self.outputs + self.temporaries)


def topology_devices(name: str) -> list[Any]:
    """Returns the devices of a slice such as `v5p:2x4x4`, `v5e:4x8`, `v6e:8x8` or `tpu7x:2x2x2`.

    Raises TopologyError if libtpu is not installed or does not know the name.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            "libtpu is not installed: pip install 'dv2_jax[tpu]' installs the compiler, on any Linux machine"
        )
    # Without these, libtpu queries the cloud's metadata server for the machine type, and locks out a second process, as
    # it must on a machine with chips.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
        raise TopologyError(
            f"topology {name!r}: {error} (names look like v5p:2x4x4, v5e:4x8, v6e:8x8, tpu7x:2x2x2)"
        ) from None


def single_host_slice(name: str, devices: list[Any]) -> str:
    """Returns the name of the slice that a single host of the slice `name` forms, e.g. v6e:2x2 for v6e:4x8.

    Programs of one host are compiled for it, because libtpu numbers the devices of v5e and v6e within the full slice and
    does not compile for a part of it.
    """
    coords = np.array([device.coords for device in devices if device.process_index == devices[0].process_index])
    kind, _, shape = name.partition(":")
    sizes = (coords.max(0) - coords.min(0) + 1)[: shape.count("x") + 1]
    return f"{kind}:{'x'.join(map(str, sizes))}"


def compile_for(
    function: Callable,
    arguments: Sequence[Any],
    text_file: Path | None = None,
    cache: Path | None = None,
    max_trip_count: int = 0,
) -> Compiled:
    """Lowers and compiles a jitted function of abstract arguments with shardings.

    The HLO text is written to `text_file`; `max_trip_count` is passed to `hlo_cost.analyze`. A program that exceeds device
    memory is a result with an `error`, not an exception. Results for the same lowered program, devices and versions are
    read from the folder `cache` if they are there (their HLO text is not cached).
    """
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    cached = None if cache is None else cache / f"{_digest(lowered, arguments, max_trip_count)}.json"
    if cached is not None and cached.exists():
        document = json.loads(cached.read_text())
        costs = document.pop("costs")
        return Compiled(**document, costs=costs and Costs(**costs))
    compiled = _compile(lowered, started, text_file, max_trip_count)
    if cached is not None:
        atomic_write(cached, json.dumps(dataclasses.asdict(compiled)))
    return compiled


def _digest(lowered: Any, arguments: Sequence[Any], max_trip_count: int) -> str:
    """Hashes everything that a result depends on: program, shardings, compiler version, and HLO analysis code."""
    sharding = next(x.sharding for x in jax.tree.leaves(arguments) if isinstance(x.sharding, NamedSharding))
    devices = [(d.device_kind, getattr(d, "coords", None)) for d in sharding.mesh.devices.flat]
    parts = [lowered.as_text(), f"{devices} {max_trip_count}", jax.__version__, importlib.metadata.version("libtpu")]
    parts += [Path(module.__file__).read_text() for module in (hlo_cost, hlo_parser, hlo_bytes)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compile(lowered: Any, started: float, text_file: Path | None, max_trip_count: int) -> Compiled:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(time.perf_counter() - started, error=_out_of_memory_message(str(error)))
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        seconds,
        arguments=memory.argument_size_in_bytes,
        outputs=outputs,
        temporaries=memory.temp_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0),  # jax 0.10.1 and later
        costs=_costs(compiled, text_file, max_trip_count),
    )


def _costs(compiled: Any, text_file: Path | None, max_trip_count: int) -> Costs | None:
    try:
        text = compiled.as_text()
    except Exception:  # some combinations of jaxlib and libtpu cannot print the HLO
        return None
    if text and text_file is not None:
        text_file.parent.mkdir(parents=True, exist_ok=True)
        text_file.write_text(text, encoding="utf-8")
    return analyze(text, max_trip_count) if text else None


def _out_of_memory_message(message: str) -> str:
    found = re.search(r"(Ran out of memory[^\n]*|Used [\d.]+\w? of [\d.]+\w?[^\n]*)", message)
    return found[1][:200] if found else message.splitlines()[0][:200]


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes per device of a tree of (abstract) arrays with shardings."""

    def size(x: Any) -> int:
        sharding = getattr(x, "sharding", None)
        shape = sharding.shard_shape(x.shape) if isinstance(sharding, NamedSharding) else x.shape
        return math.prod(shape) * np.dtype(x.dtype).itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))
