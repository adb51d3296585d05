"""Measures the check of data files: rows per second and memory, for rows with and without images.

    python -m benchmarks.data_check                  # 20,000 small rows, and 500 rows with images of 1024 × 768
    python -m benchmarks.data_check --rows 2000

The peak of memory is that of a process of its own, minus the memory of the same process after checking 100 rows.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

_PROGRAM = """
import json, re, sys
from dv2_jax.config import Config
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.data.validation import check_source
from dv2_jax.rollout.data_checks import conversation_check, question_check
build = conversation_check if sys.argv[2] == "sft" else question_check
report = check_source(sys.argv[1], build(Config(), Tokenizer.from_package()))
peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())
print(json.dumps([report.rows, report.seconds, int(peak[1]) / 1000, len(report.faults)]))
"""


def encode_image(size: tuple[int, int], image_format: str) -> str:
    """Returns a photo-like image as base64 text."""
    coarse = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, image_format)
    return base64.b64encode(buffer.getvalue()).decode()


def write_rows(path: Path, kind: str, count: int, image: str) -> None:
    """Writes `count` rows as JSONL, parquet or a JSON list, by the ending of `path`."""
    rows = [make_row(kind, number, image) for number in range(count)]
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=200)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_row(kind: str, number: int, image: str) -> dict:
    """Returns a valid row with one image, or without if `image` is empty."""
    marker, images = ("<image>", [{"bytes": image}]) if image else ("", [])
    user = {"role": "user", "content": f"{marker}What is written on sign {number}?"}
    if kind == "sft":
        answer = {"role": "assistant", "content": f"<think>I read it.</think>\n<answer>{number}</answer>"}
        return {"messages": [user, answer], "images": images}
    return {
        "images": images,
        "data_source": "perception",
        "prompt": [{"role": "system", "content": "Think, then act. " * 12}, user],
        "reward_model": {"ground_truth": str(number)},
        "extra_info": {"question": user["content"]},
    }


def measure(path: Path, kind: str) -> tuple[int, float, float, int]:
    """Checks a file in a process of its own; returns rows, seconds, peak memory in MB and faults."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(path), kind], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main(argv: list[str] | None = None) -> None:
    """Prints one line per file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="small rows; a fortieth of it with large images")
    count = parser.parse_args(argv).rows
    small, large = encode_image((56, 56), "PNG"), encode_image((1024, 768), "JPEG")
    cases = [
        ("rl", "jsonl", count, "", "no image"),
        ("rl", "jsonl", count, small, "56 × 56 PNG"),
        ("rl", "parquet", count, small, "56 × 56 PNG"),
        ("sft", "json", count, small, "56 × 56 PNG"),
        ("rl", "jsonl", max(100, count // 40), large, "1024 × 768 JPEG"),
    ]
    table = Table("rows", "format", "file, MB", "images", "rows/s", "seconds", "peak above 100 rows, MB")
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, ending, rows, image, title) in enumerate(cases):
            few, many = (Path(folder) / f"{number}-{part}.{ending}" for part in ("few", "many"))
            write_rows(few, kind, 100, image)
            write_rows(many, kind, rows, image)
            baseline = measure(few, kind)[2]
            read, seconds, peak, faults = measure(many, kind)
            if (read, faults) != (rows, 0):
                raise SystemExit(f"{title}: {read} rows and {faults} faults where {rows} valid rows were written")
            size = f"{many.stat().st_size / 1e6:.0f}"
            speed = f"{rows / seconds:,.0f}"
            table.add_row(f"{rows:,} {kind}", ending, size, title, speed, f"{seconds:.1f}", f"{peak - baseline:.0f}")
            many.unlink()
    Console().print(table)


if __name__ == "__main__":
    main()
