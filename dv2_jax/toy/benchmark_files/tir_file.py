"""TIR-Bench: one JSON list of items, and the images that it names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dv2_jax.files import atomic_write
from dv2_jax.toy.benchmark_files.items import MAKERS, SPLIT, Item, options_for, random_stream
from dv2_jax.toy.tasks import drawing

JIGSAW_SIDE = 2  # pieces per side
_LETTERS = "ABCD"


def write_tir(folder: Path, rows: int, seed: int) -> Path:
    """Writes items of eight tasks, in turns, with answers of every form that the benchmark scores."""
    makers = (_visual_search, _math, _color, _ocr, _jigsaw, _spot_difference, _word_search, _instrument)
    root = folder / "TIR-Bench"
    items = []
    for number in range(rows):
        task, item, extra = makers[number % len(makers)](random_stream(seed, "tir", number))
        names = []
        for place, image in enumerate([item.image, *extra.get("images", ())], start=1):
            names.append(f"images/{task}_{number}_{place}.jpg")
            atomic_write(root / names[-1], image)
        answer: Any = extra.get("answer", int(item.answer) if item.answer.isdigit() and task != "ocr" else item.answer)
        items.append(
            {"id": number, "task": task, "prompt": item.text, "image_1": names[0], "image_2": (*names, None)[1],
             "answer": answer, "meta_data": {"difficulty": extra.get("difficulty", 1)}}
        )  # fmt: skip
    path = root / "TIR-Bench.json"
    atomic_write(path, json.dumps(items, indent=1))
    return path


def _visual_search(rng: np.random.Generator) -> tuple[str, Item, dict]:
    return "visual_search", MAKERS["color"](rng), {}


def _math(rng: np.random.Generator) -> tuple[str, Item, dict]:
    return "math", MAKERS["image numbers"](rng), {}


def _ocr(rng: np.random.Generator) -> tuple[str, Item, dict]:
    return "ocr", MAKERS["digit"](rng), {}


def _color(rng: np.random.Generator) -> tuple[str, Item, dict]:
    item = MAKERS["frame color"](rng)
    options = options_for(rng, item.answer)
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=True))
    return "color", Item(f"{item.text}\n{lines}", _LETTERS[options.index(item.answer)], item.image, item.kind), {}


def _instrument(rng: np.random.Generator) -> tuple[str, Item, dict]:
    item = MAKERS["digit"](rng)
    text = f"{item.text} Divide it by four."
    return "instrument", Item(text, str(int(item.answer) / 4), item.image, item.kind), {}


def _jigsaw(rng: np.random.Generator) -> tuple[str, Item, dict]:
    side, count = 112, JIGSAW_SIDE**2
    photo = drawing.background(rng, SPLIT, (side * JIGSAW_SIDE, side * JIGSAW_SIDE))
    order = [int(piece) for piece in rng.permutation(count)]
    shuffled = Image.new("RGB", photo.size)
    for place, piece in enumerate(order):
        part = photo.crop(_box(piece, side))
        shuffled.paste(part, _box(place, side)[:2])
    answer = [order.index(piece) + 1 for piece in range(count)]
    text = (
        f"The pieces of an image are shuffled. They are numbered 1 to {count}, row by row. Write the numbers of the pieces"
        " in the order of the original image."
    )
    item = Item(text, ", ".join(map(str, answer)), drawing.encode(shuffled), "jigsaw")
    return "jigsaw", item, {"difficulty": JIGSAW_SIDE, "answer": answer}


def _spot_difference(rng: np.random.Generator) -> tuple[str, Item, dict]:
    side, count = 80, 9
    photo = drawing.background(rng, SPLIT, (3 * side, 3 * side))
    changed = sorted(int(cell) for cell in rng.choice(count, 2, replace=False))
    other = photo.copy()
    for cell in changed:
        left, top, right, bottom = _box(cell, side, 3)
        ImageDraw.Draw(other).rectangle([left + 20, top + 20, right - 20, bottom - 20], fill=(220, 30, 30))
    text = "The images are divided into 3 by 3 cells, numbered 1 to 9 row by row. Which cells differ?"
    item = Item(text, ", ".join(str(cell + 1) for cell in changed), drawing.encode(photo), "difference")
    return "spot_difference", item, {"images": [drawing.encode(other)]}


def _word_search(rng: np.random.Generator) -> tuple[str, Item, dict]:
    side, rows = 40, 4
    image = Image.new("RGB", (side * rows, side * rows), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    row, column = int(rng.integers(rows)), int(rng.integers(rows))
    for y in range(rows):
        for x in range(rows):
            draw.text((x * side + 14, y * side + 12), "X" if (y, x) == (row, column) else "O", fill=(0, 0, 0))
    text = "In which row and which column is the letter X? Both are counted from 1."
    return "word_search", Item(text, f"{row + 1}, {column + 1}", _png(image), "letters"), {}


def _box(cell: int, side: int, columns: int = JIGSAW_SIDE) -> tuple[int, int, int, int]:
    left, top = cell % columns * side, cell // columns * side
    return left, top, left + side, top + side


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
