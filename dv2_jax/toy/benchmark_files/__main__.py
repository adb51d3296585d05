"""Writes small files of benchmarks: `python -m dv2_jax.toy.benchmark_files FOLDER [--rows N] [--seed S]`.

The folder can be used as `eval.data`. Columns, names and image cells are those of the published files; the questions are
held-out ones of the embedded tasks, so that the shipped policies can answer many of them. Nothing is downloaded.
"""

from __future__ import annotations

import argparse

from dv2_jax.toy.benchmark_files.file_set import write_benchmark_files


def main() -> None:
    """Prints the files that it writes."""
    parser = argparse.ArgumentParser(prog="python -m dv2_jax.toy.benchmark_files", description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=20, help="rows per file, at least 8")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.rows < 8:
        parser.error("--rows must be at least 8, so that every form of a row occurs")
    for path in write_benchmark_files(options.folder, options.rows, options.seed):
        print(path)


if __name__ == "__main__":
    main()
