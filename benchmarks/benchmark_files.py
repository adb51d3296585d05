"""Measures the reader of VLMEvalKit's TSV files: time and memory of its one pass, and of reading rows at random.

    python -m benchmarks.benchmark_files                                          1,000 rows with a cell of 1 MB each
    python -m benchmarks.benchmark_files --rows 10000 --mb 1 --json FILE          10 GB, which are deleted afterwards

Each measurement is a process of its own. The peak of memory is reported with that of the same process on 100 rows, so that
their difference is what grows with the file. The question of each row contains quotation marks and line ends.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_PROGRAM = """
import json, random, re, sys, time
from dv2_jax.evaluation.readers.tsv_file import TsvFile
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1000
imported, start = peak(), time.perf_counter()
file = TsvFile(sys.argv[1], ("image", "question", "answer"))
indexed, middle = peak(), time.perf_counter()
order = random.Random(0).sample(range(len(file)), min(len(file), int(sys.argv[2])))
size = 0
for row in order:
    size += len(file.images(row)[0])
    assert file.row(row)["answer"] == str(file.index(row) % 7), row
end = time.perf_counter()
print(json.dumps({"rows": len(file), "image_mb": size / 1e6, "index_s": middle - start, "rows_read": len(order),
                  "read_s": end - middle, "imports_mb": imported, "indexed_mb": indexed, "peak_mb": peak()}))
"""


def write_tsv(path: Path, rows: int, cell_bytes: int) -> None:
    """Writes rows whose image cells are base64 of that length; every tenth row shares the image of the one before."""
    cell = base64.b64encode(np.random.default_rng(0).bytes(cell_bytes // 4 * 3))
    with path.open("wb") as file:
        file.write(b"index\timage\tquestion\tA\tB\tanswer\n")
        for number in range(rows):
            image = b"%d" % (number - 1) if number % 10 == 9 else cell
            question = b'"What is written on the ""sign""\nof row %d?"' % number
            file.write(b"%d\t%s\t%s\tyes\tno\t%d\n" % (number, image, question, number % 7))


def measure(path: Path, rows_read: int) -> dict[str, float]:
    """Reads a file in a process of its own."""
    command = [sys.executable, "-c", _PROGRAM, str(path), str(rows_read)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """Prints the measurement, and writes it to `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--mb", type=float, default=1.0, help="size of an image cell, in 10^6 bytes")
    parser.add_argument("--read", type=int, default=1000, help="rows to read at random after the pass")
    parser.add_argument("--json", default="", help="file for the result")
    parser.add_argument(
        "--folder", default=None, help="where the file is written; by default the system's temporary one"
    )
    options = parser.parse_args(argv)
    needed = options.rows * options.mb * 1e6
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if shutil.disk_usage(folder).free < 1.2 * needed:
            raise SystemExit(f"{folder} has too little room for {needed / 1e9:.1f} GB: choose another with --folder")
        few, many = Path(folder) / "Few.tsv", Path(folder) / "Many.tsv"
        write_tsv(few, min(100, options.rows), int(options.mb * 1e6))
        baseline = measure(few, options.read)
        write_tsv(many, options.rows, int(options.mb * 1e6))
        result = {"file_mb": many.stat().st_size / 1e6, **measure(many, options.read)}
    result["peak_mb_100_rows"] = baseline["peak_mb"]
    result["growth_mb"] = result["peak_mb"] - baseline["peak_mb"]
    result = {name: round(value, 2) for name, value in result.items()}
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
