"""Compiling for TPUs that are not here: the real compiler of libtpu, run on any machine.

What this proves is that a program compiles, and how much memory, arithmetic and communication the compiler planned.
It says nothing of speed or of numbers: nothing runs.
"""

from __future__ import annotations

import importlib.util
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

from dv2_jax.parallel.hlo import Costs, analyse

GIB = 2**30
# Bytes that the compiler may plan with, by device kind, as libtpu 0.0.42 states them when a program is too large.
# A tpu7x chip is two devices, and so is a v4 chip here (on real machines its two cores act as one).
HBM = {
    "TPU v4": 15.25 * GIB,
    "TPU v5 lite": 15.75 * GIB,
    "TPU v5": 95.74 * GIB,
    "TPU v6 lite": 31.25 * GIB,
    "TPU7x": 94.75 * GIB,
}


class TopologyError(ValueError):
    """A topology that cannot be compiled for, and what can."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler planned for one device; sizes in bytes. ``error``: why there is no program."""

    seconds: float
    arguments: int = 0
    outputs: int = 0  # that take no argument's place
    temporaries: int = 0
    peak: int = 0  # as the compiler states it; what it reserves may be more
    costs: Costs | None = None  # None: this libtpu cannot print the program
    error: str = ""

    @property
    def needs(self) -> int:
        """Bytes that must be free: the larger of the stated peak and the sum of all that is reserved."""
        return max(self.peak, self.arguments + self.outputs + self.temporaries)


def topology_devices(name: str) -> list[Any]:
    """Devices of a slice such as ``v5p:2x4x4``, ``v5e:4x8``, ``v6e:8x8`` or ``tpu7x:2x2x2``.

    Raises TopologyError when libtpu is not installed or does not know the name.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError("libtpu is not installed: pip install 'dv2_jax[tpu]' brings the compiler, on any Linux machine")
    # Else libtpu asks the cloud's metadata server what machine this is and complains about the answer, and lets one
    # process in at a time, as is right where there are chips.
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
        raise TopologyError(f"topology {name!r}: {error} (names look like v5p:2x4x4, v5e:4x8, v6e:8x8, tpu7x:2x2x2)") from None


def memory_limit(device: Any) -> float:
    """HBM of a device in bytes; infinite where it is not known."""
    return HBM.get(device.device_kind, math.inf)


def compile_for(function: Callable, arguments: Sequence[Any], text_file: Path | None = None) -> Compiled:
    """Lower and compile a jitted function of abstract, placed arguments; its text goes to `text_file`.

    A program that is too large is a result, not an error.
    """
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(time.perf_counter() - started, error=_shortage(str(error)))
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        seconds,
        arguments=memory.argument_size_in_bytes,
        outputs=outputs,
        temporaries=memory.temp_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0),  # jax 0.10.1 and later
        costs=_costs(compiled, text_file),
    )


def _costs(compiled: Any, text_file: Path | None) -> Costs | None:
    try:
        text = compiled.as_text()
    except Exception:  # some pairs of jaxlib and libtpu cannot print each other's programs
        return None
    if text and text_file is not None:
        text_file.parent.mkdir(parents=True, exist_ok=True)
        text_file.write_text(text, encoding="utf-8")
    return analyse(text) if text else None


def _shortage(message: str) -> str:
    found = re.search(r"(Ran out of memory[^\n]*|Used [\d.]+\w? of [\d.]+\w?[^\n]*)", message)
    return found[1][:200] if found else message.splitlines()[0][:200]


def bytes_per_device(tree: Any) -> int:
    """What a tree of (abstract) arrays takes on one device."""

    def size(x: Any) -> int:
        place = getattr(x, "sharding", None)
        shape = place.shard_shape(x.shape) if isinstance(place, NamedSharding) else x.shape
        return math.prod(shape) * np.dtype(x.dtype).itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))
