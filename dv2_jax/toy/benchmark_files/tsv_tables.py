"""TSV files as VLMEvalKit publishes them: multiple choice, charts and mathematics."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dv2_jax.files import atomic_write
from dv2_jax.toy.benchmark_files.items import (
    MAKERS,
    Item,
    chart_item,
    options_for,
    plate_scene,
    random_stream,
)

_LETTERS = "ABCD"


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows with the quoting of pandas' `to_csv`; absent values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())
    return path


def cell(*images: bytes) -> str:
    """Returns an image cell: base64 of one image, or a list literal of several."""
    encoded = [base64.b64encode(image).decode("ascii") for image in images]
    return encoded[0] if len(encoded) == 1 else str(encoded)


def write_vstar(folder: Path, rows: int, seed: int) -> Path:
    """Writes multiple choice whose image cells are base64, the index of another row, or a list.

    No cell is empty: VLMEvalKit leaves such rows out, and would score fewer than we do.
    """
    items: list[tuple[Item, str, str]] = []  # item, image cell, category
    while len(items) < rows - 2:
        rng = random_stream(seed, "vstar", len(items))
        first, second = plate_scene(rng, 2)
        items.append((first, cell(first.image), "relative_position"))
        items.append((second, str(len(items) - 1), "relative_position"))
        colored = MAKERS["color"](rng)
        items.append((colored, cell(colored.image), "direct_attributes"))
    rng = random_stream(seed, "vstar", "last")
    one, other, last = MAKERS["point"](rng), MAKERS["digit"](rng), MAKERS["frame color"](rng)
    items = [
        *items[: rows - 2],
        (one, cell(one.image, other.image), "direct_attributes"),
        (last, cell(last.image), "direct_attributes"),
    ]
    table = []
    for index, (item, image, category) in enumerate(items):
        options = options_for(random_stream(seed, "vstar options", index), item.answer)
        letter = _LETTERS[options.index(item.answer)]
        table.append(
            {"index": index, "image": image, "question": item.text, **dict(zip(_LETTERS, options, strict=True)),
             "answer": letter, "category": category}
        )  # fmt: skip
    return write_tsv(folder / "VStarBench.tsv", table)


def write_hrbench(folder: Path, rows: int, seed: int) -> Path:
    """Writes multiple choice in which each question is asked four times with rotated options and one shared image."""
    table = []
    for number in range((rows + 3) // 4):
        rng = random_stream(seed, "hrbench", number)
        item = MAKERS["point" if number % 2 else "color"](rng)
        options = options_for(rng, item.answer)
        for cycle in range(4):
            rotated = options[cycle:] + options[:cycle]
            index = len(table)
            table.append(
                {"index": index, "question": item.text, **dict(zip(_LETTERS, rotated, strict=True)),
                 "answer": _LETTERS[rotated.index(item.answer)], "category": "cross" if number % 2 else "single",
                 "cycle_category": cycle, "image": cell(item.image) if cycle == 0 else index - cycle}
            )  # fmt: skip
    return write_tsv(folder / "HRBench4K.tsv", table)


def write_chartqa(folder: Path, rows: int, seed: int) -> Path:
    """Writes questions about bar charts, and about the sizes of images."""
    table = []
    for index in range(rows):
        rng, is_human = random_stream(seed, "chartqa", index), index % 2 == 0
        item = chart_item(rng) if is_human else MAKERS["image numbers"](rng)
        split = "test_human" if is_human else "test_augmented"
        table.append(
            {"index": index, "image": cell(item.image), "question": item.text, "answer": item.answer, "split": split}
        )
    return write_tsv(folder / "ChartQA_TEST.tsv", table)


def write_mathvista(folder: Path, rows: int, seed: int) -> Path:
    """Writes free-form and multiple-choice questions with integer answers."""
    table = []
    for index in range(rows):
        rng = random_stream(seed, "mathvista", index)
        has_choices = index % 4 == 3
        item = MAKERS["digit" if has_choices else "image numbers"](rng)
        choices = options_for(rng, item.answer) if has_choices else None
        table.append(
            {
                "index": index,
                "image": cell(item.image),
                "question": item.text,
                "answer": item.answer,
                "question_type": "multi_choice" if has_choices else "free_form",
                "answer_type": "text" if has_choices else "integer",
                "precision": "",
                "choices": "" if choices is None else str(choices),
                "answer_option": "" if choices is None else _LETTERS[choices.index(item.answer)],
                "unit": "",
                "task": "figure question answering" if has_choices else "math word problem",
                "category": "general-vqa",
                "grade": "elementary school",
                "skills": "['numeric commonsense']"
                if has_choices
                else "['arithmetic reasoning', 'statistical reasoning']",
            }
        )
    return write_tsv(folder / "MathVista_MINI.tsv", table)
