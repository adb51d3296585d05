"""The set of small benchmark files."""

from __future__ import annotations

from pathlib import Path

from dv2_jax.toy.benchmark_files.search_files import write_fvqa, write_mmsearch, write_realx
from dv2_jax.toy.benchmark_files.tir_file import write_tir
from dv2_jax.toy.benchmark_files.tsv_tables import write_chartqa, write_hrbench, write_mathvista, write_vstar


def write_benchmark_files(folder: str | Path, rows: int = 20, seed: int = 1) -> list[Path]:
    """Writes the files of all kinds with `rows` rows each, and returns them; equal arguments give equal bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_vstar(folder, rows, seed),
        write_hrbench(folder, rows, seed),
        write_chartqa(folder, rows, seed),
        write_mathvista(folder, rows, seed),
        write_realx(folder, rows, seed),
        write_mmsearch(folder, rows, seed),
        *write_fvqa(folder, rows, seed),
        write_tir(folder, rows, seed),
    ]
