"""RealX-Bench, FVQA and MMSearch in parquet, and FVQA's released image search results as a pickle."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from dv2_jax.files import atomic_write
from dv2_jax.toy.benchmark_files.items import MAKERS, NUMBER_WORDS, SPLIT, Item, random_stream
from dv2_jax.toy.tasks import drawing, facts, lookup

_IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
_TEXT, _TEXTS = pyarrow.string(), pyarrow.list_(pyarrow.string())
SEARCH_RESULTS = 5  # per question in the released file

REALX_SCHEMA = pyarrow.schema(
    [("query", _TEXT), ("answer", _TEXT), ("perception", pyarrow.int64()), ("search", pyarrow.int64()),
     ("reason", pyarrow.int64()), ("image", _IMAGE)]
)  # fmt: skip
FVQA_SCHEMA = pyarrow.schema(
    [("prompt", pyarrow.list_(pyarrow.struct([("content", _TEXT), ("role", _TEXT)]))), ("images", pyarrow.list_(_IMAGE)),
     ("image_urls", _TEXTS), ("ability", _TEXT), ("env_name", _TEXT),
     ("reward_model", pyarrow.struct([("candidate_answers", _TEXT), ("ground_truth", _TEXT), ("style", _TEXT)])),
     ("data_source", _TEXT), ("data_id", _TEXT), ("category", _TEXT)]
)  # fmt: skip
MMSEARCH_SCHEMA = pyarrow.schema(
    [("sample_id", _TEXT), ("query", _TEXT), ("query_image", _IMAGE), ("image_search_result", _IMAGE), ("area", _TEXT),
     ("subfield", _TEXT), ("timestamp", _TEXT), ("gt_requery", _TEXT), ("gt_answer", _TEXT),
     ("alternative_gt_answers", _TEXTS)]
)  # fmt: skip

# Kind of item → needs perception, search, reasoning.
_REALX_KINDS = {
    "color": (1, 0, 0), "image numbers": (0, 0, 1), "recognize": (0, 1, 1), "read and look up": (1, 1, 1),
}  # fmt: skip


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema) -> Path:
    """Writes rows in small row groups, as large files have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, row_group_size=16)
    return path


def image_struct(image: bytes | None) -> dict[str, Any] | None:
    """Returns an image as Hugging Face stores it."""
    return None if image is None else {"bytes": image, "path": None}


def write_realx(folder: Path, rows: int, seed: int) -> Path:
    """Writes questions that need one, two or all three abilities; digits have a number word as an alternative."""
    table = []
    for number in range(rows):
        kind = list(_REALX_KINDS)[number % len(_REALX_KINDS)]
        item = MAKERS[kind](random_stream(seed, "realx", number))
        perception, search, reason = _REALX_KINDS[kind]
        table.append(
            {"query": item.text, "answer": " or ".join([item.answer, *alternatives(item.answer)]),
             "perception": perception, "search": search, "reason": reason, "image": image_struct(item.image)}
        )  # fmt: skip
    return write_parquet(folder / "RealXBench" / "data" / "test-00000-of-00001.parquet", table, REALX_SCHEMA)


def alternatives(answer: str) -> list[str]:
    """Returns other accepted answers: the word of a digit."""
    return [NUMBER_WORDS[int(answer)]] if len(answer) == 1 and answer.isdigit() else []


def write_mmsearch(folder: Path, rows: int, seed: int) -> Path:
    """Writes questions with and without an image."""
    table = []
    for number in range(rows):
        has_image = number % 3 != 2
        item = MAKERS["recognize" if has_image else "look up"](random_stream(seed, "mmsearch", number))
        table.append(
            {"sample_id": f"{number:04d}", "query": item.text, "query_image": image_struct(item.image),
             "image_search_result": image_struct(item.image), "area": "knowledge", "subfield": "geography",
             "timestamp": "2024-07-01", "gt_requery": item.text.rstrip("?."), "gt_answer": item.answer,
             "alternative_gt_answers": alternatives(item.answer)}
        )  # fmt: skip
    return write_parquet(folder / "MMSearch" / "end2end.parquet", table, MMSEARCH_SCHEMA)


def write_fvqa(folder: Path, rows: int, seed: int) -> list[Path]:
    """Writes questions of which two of three need a search, and the image search results for them."""
    table, results = [], {}
    for number in range(rows):
        needs_search = number % 3 != 2
        item = MAKERS["recognize" if needs_search else "frame color"](random_stream(seed, "fvqa", number))
        data_id = f"fvqa_test_{number}"
        table.append(
            {"prompt": [{"content": item.text, "role": "user"}], "images": [image_struct(item.image)], "image_urls": None,
             "ability": "fact", "env_name": "search",
             "reward_model": {"candidate_answers": json.dumps([item.answer, *alternatives(item.answer)]),
                              "ground_truth": item.answer, "style": "rule"},
             "data_source": "mmsearch_r1/fvqa_test", "data_id": data_id,
             "category": "search_required" if needs_search else "search_free"}
        )  # fmt: skip
        results[data_id] = _image_search_results(item, seed, number)
    parquet = write_parquet(folder / "FVQA" / "fvqa_test.parquet", table, FVQA_SCHEMA)
    cache = folder / "FVQA" / "fvqa_test_image_search_results_cache.pkl"
    atomic_write(cache, pickle.dumps(results, protocol=4))
    return [parquet, cache]


def _image_search_results(item: Item, seed: int, number: int) -> dict[str, list]:
    """Returns the entry of one question: titles, and images of which the last is only an address, as in the release."""
    rng = random_stream(seed, "fvqa results", number)
    known = lookup.image_index_entries()
    chosen = [known[int(i)] for i in rng.choice(len(known), SEARCH_RESULTS, replace=False)]
    if item.kind == "recognise":
        chosen[0] = _entry_of(item, known)
    images: list[Any] = [_opened(drawing.entity_image(name, facts.split_of(name))) for name, _ in chosen[:-1]]
    images.append(f"https://thumbnails.example/{number}.jpg")
    return {"tool_returned_web_title_list": [title for _, title in chosen], "tool_returned_images_urls": images}


def _entry_of(item: Item, known: list[tuple[str, str]]) -> tuple[str, str]:
    """Returns the entry of the image index whose image is nearest to an item's."""
    import numpy as np

    def signature(image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BOX), float)
        return pixels / pixels.mean()

    held_out = [entry for entry in known if facts.split_of(entry[0]) == SPLIT]
    target = signature(drawing.load(item.image or b""))
    distances = [np.abs(signature(drawing.entity_image(name, SPLIT)) - target).mean() for name, _ in held_out]
    return held_out[int(np.argmin(distances))]


def _opened(image: Image.Image) -> Image.Image:
    """Returns an image as if it had been opened from a downloaded JPEG file."""
    opened = Image.open(io.BytesIO(drawing.encode(image)))
    opened.load()
    return opened
