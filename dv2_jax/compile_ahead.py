"""`python -m dv2_jax.compile_ahead --topology v5p:2x4x4 --config=configs/rl.py:7b [--config.SECTION.FIELD=VALUE ...]`

Compiles a recipe's programs for a TPU slice with libtpu's compiler, on any Linux machine without a TPU: the gradient of
a microbatch, the optimizer step, the reference's log-probs if there is a KL term, and the engine's prefill, decode and
image encoder. Prints the memory, FLOPs, HBM and collective bytes of each per device, and its roofline time. Needs
`pip install 'dv2_jax[tpu]'`.

`--table LIST --output FILE` runs every line of a list that begins with `--`, each program in its own process, and writes
Markdown; the other lines of the list are copied. Results are cached, so a second run compiles only what changed.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dv2_jax.config import Config, ConfigError, load, one_line_errors

if TYPE_CHECKING:
    from dv2_jax.aot.compile_report import Row
    from dv2_jax.aot.programs import Program

PROVES = (
    "Compiled, not run: this shows that the programs compile and how much memory, arithmetic and communication the"
    " compiler planned. Times follow from published peaks; nothing was measured on a TPU, and numerics are not tested."
)
COMMAND = "python -m dv2_jax.compile_ahead"
CACHE = "build/compiled"
CRASHED = "the process ended"


def run(
    config: Config,
    topology: str,
    programs: Sequence[str] = (),
    *,
    number: int | None = None,
    hlo: str = "",
    cache: str = "",
    write: Callable[[str, int, Sequence[Row]], None] = lambda title, total, rows: None,
) -> tuple[str, int, list[Row]]:
    """Compiles the programs of `config.recipe` whose names or shapes contain one of the words `programs`.

    Returns a description of the slice, the number of selected programs, and a row for each of them (only for the program
    at index `number`, if given). HLO text is written to the folder `hlo`, and results are cached in the folder `cache`.
    `write` is called with these values before each program and at the end: each program is first recorded with the error
    CRASHED; the record is overwritten unless the compiler aborts the process.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # libtpu only compiles; JAX must not look for chips
    jax.config.update("jax_enable_compilation_cache", False)  # cached executables cannot be deserialized without a chip
    from dv2_jax.aot.compile import Compiled, compile_for, single_host_slice, topology_devices
    from dv2_jax.aot.compile_report import Row
    from dv2_jax.aot.programs import abstract_policy, engine_programs, rl_programs, sft_programs
    from dv2_jax.aot.roofline import GIB, chip_of
    from dv2_jax.parallel.mesh import use_mesh

    devices = topology_devices(topology)
    chip = chip_of(devices[0])
    host_devices = topology_devices(single_host_slice(topology, devices))
    policy = abstract_policy(config, devices, host_devices)
    try:
        if config.recipe == "sft":
            found = sft_programs(policy, config)
        else:
            found = [*rl_programs(policy, config), *engine_programs(policy, config)]
    except ValueError as error:  # the mesh does not divide the rows or pages
        raise ConfigError(f"on {len(devices)} devices: {error}") from error
    chosen = select_programs(found, programs)
    if number is not None and not 0 <= number < len(chosen):
        raise ConfigError(f"--number {number}: there are {len(chosen)} programs, counted from 0")
    sizes = ", ".join(f"{name} {size}" for name, size in policy.mesh.shape.items())
    title = f"{topology}, {len(devices)} devices of {chip.memory / GIB:.2f} GiB, mesh {sizes}"
    rows: list[Row] = []
    for index, program in enumerate(chosen):
        if number not in (None, index):
            continue
        print(f"compiling {program.name} {program.shape} ...", file=sys.stderr, flush=True)
        started = Compiled(0.0, error=CRASHED)
        row = Row(
            program.name,
            program.shape,
            started,
            chip,
            program.resident_bytes,
            program.model_flops,
            program.runs_per_step,
        )
        write(title, len(chosen), [*rows, row])
        text = Path(hlo, f"{index}-{program.name.replace(' ', '-')}.hlo.txt") if hlo else None
        with use_mesh(program.mesh):
            folder = Path(cache) if cache else None
            compiled = compile_for(program.function, program.arguments, text, folder, program.max_trip_count)
        rows.append(replace(row, compiled=compiled))
    write(title, len(chosen), rows)
    return title, len(chosen), rows


def select_programs(found: Sequence[Program], words: Sequence[str]) -> list[Program]:
    """Returns the programs whose names or shapes contain one of the words, or all if there are no words.

    Raises ConfigError if there is none.
    """
    chosen = [p for p in found if not words or any(word in f"{p.name} {p.shape}" for word in words)]
    if not chosen:
        raise ConfigError(f"--programs {' '.join(words)}: none of {', '.join(p.name for p in found)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--topology", default="", help="v5e:4x8, v5p:2x4x4, v6e:8x8, tpu7x:2x2x2, ...")
    parser.add_argument(
        "--programs", nargs="*", default=[], help="only programs whose name or shape contains one of these"
    )
    parser.add_argument("--number", type=int, help="only the program at this index among them, from 0")
    parser.add_argument("--hlo", default="", metavar="FOLDER", help="write the HLO text of the programs to this folder")
    parser.add_argument("--json", default="", metavar="FILE", help="write the results to this file too")
    parser.add_argument(
        "--cache", default="", metavar="FOLDER", help=f"cache results in this folder; default for --table: {CACHE}"
    )
    parser.add_argument(
        "--table", default="", metavar="LIST", help="a file with arguments of this command, line by line"
    )
    parser.add_argument("--output", default="", metavar="FILE", help="the Markdown that --table writes")
    arguments, rest = parser.parse_known_args(argv)
    if bool(arguments.topology) == bool(arguments.table) or bool(arguments.table) != bool(arguments.output):
        parser.error("give --topology, or --table and --output")
    if arguments.table:
        with one_line_errors():
            return run_list(Path(arguments.table), Path(arguments.output), arguments.cache or CACHE)

    def write(title: str, total: int, rows: Sequence[Row]) -> None:
        if arguments.json:
            document = {"place": title, "versions": versions(), "programs": total, "rows": [r.to_dict() for r in rows]}
            Path(arguments.json).write_text(json.dumps(document, indent=1), encoding="utf-8")

    with one_line_errors():
        config = load(rest, command="compile_ahead", default_config="configs/rl.py")
        title, _, rows = run(
            config,
            arguments.topology,
            arguments.programs,
            number=arguments.number,
            hlo=arguments.hlo,
            cache=arguments.cache,
            write=write,
        )
    from dv2_jax.aot.compile_report import LEGEND, table

    print(f"{title}; {versions()}\n{LEGEND}\n\n{table(rows)}\n\n{PROVES}")
    return 0 if all(row.fits for row in rows) else 1


def versions() -> str:
    import importlib.metadata

    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))


def run_list(source: Path, output: Path, cache: str) -> int:
    """Runs the commands of a list and writes the report, which is rewritten after every command.

    Returns 1 if a program failed to compile for a reason other than its memory.
    """
    from dv2_jax.aot.compile_report import LEGEND, table

    text, failed = [], 0
    for line in source.read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            text.append(line)
            continue
        print(f"{COMMAND} {line}", file=sys.stderr, flush=True)
        text += ["```", f"{COMMAND} {line}", "```", ""]
        try:
            title, rows = _compile_in_processes(shlex.split(line), cache)
            text += [f"{title}.", "", table(rows), ""]
            failed += any(row.compiled.error.startswith(CRASHED) for row in rows)
        except RuntimeError as error:
            failed += 1
            text += [f"**Did not compile:** {_reason(str(error))}", ""]
        output.write_text("\n".join([*text, "", f"{versions()}. {LEGEND}", "", PROVES, ""]), encoding="utf-8")
    return 1 if failed else 0


def _reason(written: str) -> str:
    """Returns the line of a process's stderr that gives the reason: a failed compiler check, an error, or the last line."""
    if check := re.search(r"^F\d{4} .*?\] (.{,200})", written, re.MULTILINE):
        return check[1]
    lines = [line.strip() for line in written.splitlines() if line.strip()] or ["no output on stderr"]
    return next(
        (line for line in reversed(lines) if "Error" in line.split(":")[0] or line.startswith("error:")), lines[-1]
    )


def _compile_in_processes(arguments: list[str], cache: str) -> tuple[str, list[Row]]:
    """Compiles the programs of one command, each in its own process, so that memory is freed and a crash affects only one.

    Raises RuntimeError with the stderr of a process that fails before it compiles anything.
    """
    from dv2_jax.aot.compile_report import Row

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        while True:
            result.unlink(missing_ok=True)
            more = ["--number", str(len(rows)), "--cache", cache, "--json", str(result)]
            command = [sys.executable, "-m", "dv2_jax.compile_ahead", *arguments, *more]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if not result.exists():
                raise RuntimeError(done.stderr or f"ended with {done.returncode}")
            document: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            [row] = map(Row.from_dict, document["rows"])
            if row.compiled.error == CRASHED:
                row = replace(row, compiled=replace(row.compiled, error=f"{CRASHED}: {_reason(done.stderr)}"))
            rows.append(row)
            if len(rows) == document["programs"]:
                return document["place"], rows


if __name__ == "__main__":
    sys.exit(main())
