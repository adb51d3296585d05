"""Compiling for TPUs that are not here: the real compiler of libtpu, run on any machine.

What this proves is that a program compiles, and how much memory, arithmetic and communication the compiler planned.
It says nothing of speed or of numbers: nothing runs.
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
        raise TopologyError(
            "libtpu is not installed: pip install 'dv2_jax[tpu]' brings the compiler, on any Linux machine"
        )
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
        raise TopologyError(
            f"topology {name!r}: {error} (names look like v5p:2x4x4, v5e:4x8, v6e:8x8, tpu7x:2x2x2)"
        ) from None


def slice_of_one_host(name: str, devices: list[Any]) -> str:
    """The slice that one host of the slice `name` would be alone: v6e:2x2 for v6e:4x8.

    A program for part of a slice is compiled for that: libtpu counts the devices of v5e and v6e within the whole slice.
    """
    own = np.array([device.coords for device in devices if device.process_index == devices[0].process_index])
    kind, _, whole = name.partition(":")
    sizes = (own.max(0) - own.min(0) + 1)[: whole.count("x") + 1]
    return f"{kind}:{'x'.join(map(str, sizes))}"


def compile_for(
    function: Callable,
    arguments: Sequence[Any],
    text_file: Path | None = None,
    cache: Path | None = None,
    loops: int = 0,
) -> Compiled:
    """Lower and compile a jitted function of abstract, placed arguments; its text goes to `text_file`, and `loops` to
    `hlo.analyze`.

    A program that is too large is a result, not an error. With a folder `cache`, what was compiled before, from the
    same lowered program for the same devices by the same versions, is read from there (its text is not).
    """
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    kept = None if cache is None else cache / f"{_digest(lowered, arguments, loops)}.json"
    if kept is not None and kept.exists():
        document = json.loads(kept.read_text())
        costs = document.pop("costs")
        return Compiled(**document, costs=costs and Costs(**costs))
    done = _compile(lowered, started, text_file, loops)
    if kept is not None:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(dataclasses.asdict(done)))
        unfinished.replace(kept)
    return done


def _digest(lowered: Any, arguments: Sequence[Any], loops: int) -> str:
    """Of everything that a result depends on: program, places, compiler, and how its text is read."""
    place = next(x.sharding for x in jax.tree.leaves(arguments) if isinstance(x.sharding, NamedSharding))
    devices = [(d.device_kind, getattr(d, "coords", None)) for d in place.mesh.devices.flat]
    parts = [lowered.as_text(), f"{devices} {loops}", jax.__version__, importlib.metadata.version("libtpu")]
    parts += [Path(module.__file__).read_text() for module in (hlo_cost, hlo_parser, hlo_bytes)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compile(lowered: Any, started: float, text_file: Path | None, loops: int) -> Compiled:
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
        costs=_costs(compiled, text_file, loops),
    )


def _costs(compiled: Any, text_file: Path | None, loops: int) -> Costs | None:
    try:
        text = compiled.as_text()
    except Exception:  # some pairs of jaxlib and libtpu cannot print each other's programs
        return None
    if text and text_file is not None:
        text_file.parent.mkdir(parents=True, exist_ok=True)
        text_file.write_text(text, encoding="utf-8")
    return analyze(text, loops) if text else None


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
