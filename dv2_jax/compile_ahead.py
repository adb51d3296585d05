"""``python -m dv2_jax.compile_ahead --topology v5p:2x4x4 --config=configs/rl.py:7b [--config.SECTION.FIELD=VALUE ...]``

Compiles a recipe's programs for a TPU slice that is not here, with the compiler of libtpu, on any Linux machine:
the gradient of a microbatch, the optimizer's step, the log-prob pass, and the engine's prefill, decode and encoder.
Prints what each needs of a device's memory, what it computes, moves and sends, and how long that takes at best.
Needs `pip install 'dv2_jax[tpu]'`.

``--table LIST --output FILE`` does so for every line of a list that begins with ``--``, each program in a process of its
own, and writes Markdown; the other lines of the list are its text. What was compiled before is not compiled again.
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

from dv2_jax.config import Config, ConfigError, load

if TYPE_CHECKING:
    from dv2_jax.aot.compile_report import Row
    from dv2_jax.aot.programs import Program

PROVES = (
    "Compiled, not run: this shows that the programs compile and how much memory, arithmetic and communication the"
    " compiler planned. Times follow from published peaks; nothing here was measured on a TPU, and numerics are not shown."
)
COMMAND = "python -m dv2_jax.compile_ahead"
CACHE = "build/compiled"
ENDED = "the process ended"


def run(
    config: Config,
    topology: str,
    programs: Sequence[str] = (),
    *,
    number: int | None = None,
    hlo: str = "",
    cache: str = "",
    write: Callable[[str, int, Sequence[Row]], None] = lambda place, total, rows: None,
) -> tuple[str, int, list[Row]]:
    """What the slice is, how many programs of `config.recipe` the words `programs` name, and a row for each of them (or
    for that of one `number`).

    The compiled programs' text is written to the folder `hlo`, if there is one; results are kept in the folder `cache`.
    `write` gets the same before each program and at the end: a program begun is a row of the error ENDED, which stays
    where the compiler takes the process along.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # libtpu compiles; it must not look for chips
    jax.config.update("jax_enable_compilation_cache", False)  # without a chip, what is in it cannot be read back
    from dv2_jax.aot.compile import Compiled, compile_for, slice_of_one_host, topology_devices
    from dv2_jax.aot.compile_report import Row
    from dv2_jax.aot.programs import abstract_policy, engine_programs, rl_programs, sft_programs
    from dv2_jax.aot.roofline import GIB, chip_of
    from dv2_jax.parallel.mesh import under

    devices = topology_devices(topology)
    chip, host = chip_of(devices[0]), topology_devices(slice_of_one_host(topology, devices))
    policy = abstract_policy(config, devices, host)
    try:
        found = sft_programs(policy) if config.recipe == "sft" else [*rl_programs(policy), *engine_programs(policy)]
    except ValueError as error:  # rows or pages that the mesh does not divide
        raise ConfigError(f"on {len(devices)} devices: {error}") from error
    chosen = choose(found, programs)
    if number is not None and not 0 <= number < len(chosen):
        raise ConfigError(f"--number {number}: there are {len(chosen)} programs, counted from 0")
    sizes = ", ".join(f"{name} {size}" for name, size in policy.mesh.shape.items())
    place = f"{topology}, {len(devices)} devices of {chip.memory / GIB:.2f} GiB, mesh {sizes}"
    rows: list[Row] = []
    for index, program in enumerate(chosen):
        if number not in (None, index):
            continue
        print(f"compiling {program.name} {program.shape} ...", file=sys.stderr, flush=True)
        begun = Compiled(0.0, error=ENDED)
        row = Row(program.name, program.shape, begun, chip, program.beside, program.useful, program.repeats)
        write(place, len(chosen), [*rows, row])
        text = Path(hlo, f"{index}-{program.name.replace(' ', '-')}.hlo.txt") if hlo else None
        with under(program.mesh):
            kept = Path(cache) if cache else None
            compiled = compile_for(program.function, program.arguments, text, kept, program.loops)
        rows.append(replace(row, compiled=compiled))
    write(place, len(chosen), rows)
    return place, len(chosen), rows


def choose(found: Sequence[Program], words: Sequence[str]) -> list[Program]:
    """Those whose names or shapes contain one of the words; all of them without words."""
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
        "--programs", nargs="*", default=[], help="only those whose names or shapes contain one of these"
    )
    parser.add_argument("--number", type=int, help="only the one at this place among them, from 0")
    parser.add_argument("--hlo", default="", metavar="FOLDER", help="write the compiled programs there, as text")
    parser.add_argument("--json", default="", metavar="FILE", help="write the numbers there too")
    parser.add_argument("--cache", default="", metavar="FOLDER", help=f"keep results there; for --table {CACHE}")
    parser.add_argument(
        "--table", default="", metavar="LIST", help="a file with arguments of this command, line by line"
    )
    parser.add_argument("--output", default="", metavar="FILE", help="the Markdown that --table writes")
    arguments, rest = parser.parse_known_args(argv)
    if bool(arguments.topology) == bool(arguments.table) or bool(arguments.table) != bool(arguments.output):
        parser.error("give --topology, or --table and --output")
    if arguments.table:
        return run_list(Path(arguments.table), Path(arguments.output), arguments.cache or CACHE)
    from dv2_jax.aot.compile import TopologyError

    def write(place: str, total: int, rows: Sequence[Row]) -> None:
        if arguments.json:
            document = {"place": place, "versions": versions(), "programs": total, "rows": [r.to_dict() for r in rows]}
            Path(arguments.json).write_text(json.dumps(document, indent=1), encoding="utf-8")

    try:
        config = load(rest, verb="compile_ahead", default_config="configs/rl.py")
        place, _, rows = run(
            config,
            arguments.topology,
            arguments.programs,
            number=arguments.number,
            hlo=arguments.hlo,
            cache=arguments.cache,
            write=write,
        )
    except (ConfigError, TopologyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from dv2_jax.aot.compile_report import LEGEND, table

    print(f"{place}; {versions()}\n{LEGEND}\n\n{table(rows)}\n\n{PROVES}")
    return 0 if all(row.fits for row in rows) else 1


def versions() -> str:
    import importlib.metadata

    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))


def run_list(source: Path, output: Path, cache: str) -> int:
    """Compile what the list says and write the report, anew after every command: an interrupted one is not lost.

    Returns 1 when a program did not compile for another reason than its size.
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
            place, rows = _each_alone(shlex.split(line), cache)
            text += [f"{place}.", "", table(rows), ""]
            failed += any(row.compiled.error.startswith(ENDED) for row in rows)
        except RuntimeError as error:
            failed += 1
            text += [f"**Did not compile:** {_reason(str(error))}", ""]
        output.write_text("\n".join([*text, "", f"{versions()}. {LEGEND}", "", PROVES, ""]), encoding="utf-8")
    return 1 if failed else 0


def _reason(written: str) -> str:
    """The line that says why, of what a process wrote: a failed check of the compiler, that which names an error, or the
    last."""
    if check := re.search(r"^F\d{4} .*?\] (.{,200})", written, re.MULTILINE):
        return check[1]
    lines = [line.strip() for line in written.splitlines() if line.strip()] or ["no reason was given"]
    return next(
        (line for line in reversed(lines) if "Error" in line.split(":")[0] or line.startswith("error:")), lines[-1]
    )


def _each_alone(arguments: list[str], cache: str) -> tuple[str, list[Row]]:
    """The programs of one command, each compiled by a process of its own, whose memory is then free again, and whose end
    is that one's alone.

    Raises RuntimeError with what a process wrote that failed before it compiled anything.
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
            if row.compiled.error == ENDED:
                row = replace(row, compiled=replace(row.compiled, error=f"{ENDED}: {_reason(done.stderr)}"))
            rows.append(row)
            if len(rows) == document["programs"]:
                return document["place"], rows


if __name__ == "__main__":
    sys.exit(main())
