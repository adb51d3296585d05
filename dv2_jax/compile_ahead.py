"""``python -m dv2_jax.compile_ahead --topology v5p:2x4x4 --config=configs/rl.py:7b [--config.SECTION.FIELD=VALUE ...]``

Compiles a recipe's programs for a TPU slice that is not here, with the compiler of libtpu, on any Linux machine:
the gradient of a microbatch, the optimiser's step, the log-prob pass, and the engine's prefill, decode and encoder.
Prints what each needs of a device's memory, what it computes and what it sends. Needs `pip install 'dv2_jax[tpu]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dv2_jax.config import Config, ConfigError, load

if TYPE_CHECKING:
    from dv2_jax.parallel.aot import Compiled
    from dv2_jax.recipes.programs import Program

PROVES = (
    "Compiled, not run: this shows that the programs compile and how much memory, arithmetic and communication the"
    " compiler planned. It says nothing of speed or of numerics."
)
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    """One program's line of the table."""

    program: Program
    compiled: Compiled
    limit: float  # bytes of a device

    @property
    def fits(self) -> bool:
        return not self.compiled.error and self.compiled.needs + self.program.beside <= self.limit

    def cells(self) -> list[str]:
        done, costs = self.compiled, self.compiled.costs
        first = [self.program.name, self.program.shape, "yes" if self.fits else "**no**"]
        if done.error:
            return [*first, "", "", "", _gib(self.program.beside), f"{done.seconds:.0f}", "", done.error]
        sizes = [done.arguments, done.temporaries, done.peak, self.program.beside]
        return [
            *first,
            *(_gib(size) for size in sizes),
            f"{done.seconds:.0f}",
            f"{_number(costs.flops / 1e12)}{'+' if costs.unknown_loops else ''}" if costs else "?",
            _collectives(costs) if costs else "?",
        ]

    def to_dict(self) -> dict[str, Any]:
        document = dataclasses.asdict(self.compiled)
        return {"program": self.program.name, "shape": self.program.shape, "fits": self.fits,
                "beside": self.program.beside, "limit": self.limit, **document}  # fmt: skip


HEAD = ["program", "shape", "fits", "arguments", "temporaries", "peak", "beside", "compile s", "matrix TFLOP", "sent, GiB"]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, aligned so that it reads as it is too."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def run(
    config: Config, topology: str, programs: Sequence[str] = (), hlo: str = ""
) -> tuple[dict[str, int], list[Row]]:
    """Sizes of the mesh, and a row for every program of `config.recipe` that one of the words `programs` names.

    The compiled programs' text is written to the folder `hlo`, if there is one.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # libtpu compiles; it must not look for chips
    jax.config.update("jax_enable_compilation_cache", False)  # without a chip, what is in it cannot be read back
    from dv2_jax.parallel.aot import compile_for, memory_limit, topology_devices
    from dv2_jax.parallel.mesh import under
    from dv2_jax.recipes.programs import abstract_policy, engine_programs, rl_programs, sft_programs

    devices = topology_devices(topology)
    policy = abstract_policy(config, devices)
    try:
        found = sft_programs(policy) if config.recipe == "sft" else [*rl_programs(policy), *engine_programs(policy)]
    except ValueError as error:  # rows or pages that the mesh does not divide
        raise ConfigError(f"on {len(devices)} devices: {error}") from error
    rows = []
    for number, program in enumerate(choose(found, programs)):
        print(f"compiling {program.name} {program.shape} ...", file=sys.stderr, flush=True)
        with under(program.mesh):
            text = Path(hlo, f"{number}-{program.name.replace(' ', '-')}.hlo.txt") if hlo else None
            compiled = compile_for(program.function, program.arguments, text)
        rows.append(Row(program, compiled, memory_limit(devices[0])))
    return dict(policy.mesh.shape), rows


def choose(found: Sequence[Program], words: Sequence[str]) -> list[Program]:
    """Those whose names or shapes contain one of the words; all of them without words."""
    chosen = [p for p in found if not words or any(word in f"{p.name} {p.shape}" for word in words)]
    if not chosen:
        raise ConfigError(f"--programs {' '.join(words)}: none of {', '.join(p.name for p in found)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dv2_jax.compile_ahead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--topology", required=True, help="v5e:4x8, v5p:2x4x4, v6e:8x8, tpu7x:2x2x2, ...")
    parser.add_argument("--programs", nargs="*", default=[], help="only those whose names or shapes contain one of these")
    parser.add_argument("--hlo", default="", metavar="FOLDER", help="write the compiled programs there, as text")
    parser.add_argument("--json", default="", metavar="FILE", help="write the numbers there too")
    arguments, rest = parser.parse_known_args(argv)
    from dv2_jax.parallel.aot import TopologyError

    try:
        config = load(rest, verb="compile_ahead", default_config="configs/rl.py")
        mesh, rows = run(config, arguments.topology, arguments.programs, arguments.hlo)
    except (ConfigError, TopologyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import importlib.metadata

    import jax

    sizes = ", ".join(f"{name} {size}" for name, size in mesh.items())
    versions = f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}"
    print(f"{arguments.topology}, mesh {sizes}; {rows[0].limit / GIB:.2f} GiB per device; {versions}")
    print("Per device; memory in GiB. `beside`: what the run holds besides the program's arguments.\n")
    print(table(rows), f"\n\n{PROVES}", sep="")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([row.to_dict() for row in rows], file, indent=2)
    return 0 if all(row.fits for row in rows) else 1


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def _gib(size: float) -> str:
    return _number(size / GIB)


def _collectives(costs: Any) -> str:
    parts = [f"{name} {_gib(size)}" for name, size in sorted(costs.sent.items(), key=lambda x: -x[1]) if size]
    return f"{_gib(costs.bytes_sent)}" + (f" ({', '.join(parts)})" if parts else "")


if __name__ == "__main__":
    sys.exit(main())
