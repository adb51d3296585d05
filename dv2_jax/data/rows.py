"""Reads files in the released formats: RL rows as questions, SFT conversations as messages.

Both are read lazily, one row at a time, because released files hold gigabytes of images.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.data.images import ImageFile
from dv2_jax.data.question import DATA_SOURCES, Question

_BATCH_ROWS = 16  # parquet rows decoded at a time


class RowError(ValueError):
    """Raised for a row that does not follow the format; the message names the file, the row and the fault."""


@dataclass(frozen=True)
class Conversation:
    """One supervised example, with images in the order of the `<image>` markers."""

    id: str
    messages: tuple[dict, ...]
    images: tuple[bytes, ...]


def read_questions(path: str | Path) -> Iterator[Question]:
    """Reads the questions of a `.parquet`, `.jsonl` or `.json` file, or of every such file in a folder, by name.

    An image is `{"bytes": ...}` (base64 in JSON) or `{"image": path}` (relative to the file). `prompt` is kept
    unchanged as `Question.messages`.

    Raises:
        RowError: a row lacks a field or holds a wrong one.
        ImportError: a parquet file without pyarrow.
    """
    for file in _files(Path(path), (".parquet", ".jsonl", ".json")):
        for number, row in enumerate(_rows(file)):
            where = f"{file.name}:{number}"
            try:
                yield _parse_question(row, f"{file.stem}:{number}", file.parent)
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise RowError(f"{where}: {_reason(error)}") from error


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """Reads the conversations of a `.json` (one list) or `.jsonl` file, or of every such file in a folder, by name.

    Raises:
        RowError: a row lacks its messages, or an image is missing.
    """
    for file in _files(Path(path), (".jsonl", ".json")):
        for number, row in enumerate(_rows(file)):
            try:
                images = _read_images(row, file.parent)
                yield Conversation(f"{file.stem}:{number}", _parse_messages(row["messages"]), images)
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise RowError(f"{file.name}:{number}: {_reason(error)}") from error


def _parse_question(row: Mapping[str, Any], id_: str, folder: Path) -> Question:
    source = row["data_source"]
    if source not in DATA_SOURCES:
        raise ValueError(f"data_source {source!r} is none of {DATA_SOURCES}")
    extra = dict(row.get("extra_info") or {})
    truth = row["reward_model"]["ground_truth"]
    if not isinstance(truth, str):
        raise TypeError(f"reward_model.ground_truth is {type(truth).__name__}, not a string")
    messages = _parse_messages(row["prompt"])
    text = extra.get("question") or next(m["content"] for m in reversed(messages) if m["role"] == "user")
    return Question(
        id=id_,
        skill=extra.get("skill") or source,
        data_source=source,
        text=text,
        images=_read_images(row, folder),
        answer=truth,
        verifier=extra.get("verifier") or _default_verifier(source, truth),
        messages=messages,
        meta=extra,
    )


def _default_verifier(source: str, truth: str) -> str:
    """Chooses the verifier for rule-based grading, because released rows do not name one."""
    if source == "reason":
        return "math"
    return "choice" if len(truth.strip()) == 1 and truth.strip().isalpha() else "text"


def _parse_messages(value: Any) -> tuple[dict, ...]:
    messages = tuple({"role": message["role"], "content": message["content"]} for message in value)
    for message in messages:
        if message["role"] not in ("system", "user", "assistant") or not isinstance(message["content"], str):
            raise ValueError(f"message of role {message['role']!r} with {type(message['content']).__name__} content")
    return messages


def _read_images(row: Mapping[str, Any], folder: Path) -> tuple[bytes, ...]:
    if row.get("videos"):
        raise ValueError("the row has videos, which are not supported: give frames as images, or leave the row out")
    return tuple(_read_image(image, folder) for image in row.get("images") or ())


def _read_image(value: Any, folder: Path) -> bytes:
    if isinstance(value, Mapping):
        data, name = value.get("bytes"), value.get("image") or value.get("path")
        if isinstance(data, bytes):
            return data
        if isinstance(data, str):
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise ValueError(f"images[].bytes is not base64: {error}") from error
        value = name
    if isinstance(value, str):
        return ImageFile.read(folder / value.removeprefix("file://"))
    raise ValueError("an image is {'bytes': ...}, {'image': path} or a path")


def _files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    found = sorted(file for file in path.iterdir() if file.suffix in endings) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"no {', '.join(endings)} file at {path}")
    return found


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
    elif file.suffix == ".json":
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise RowError(f"{file.name}: holds a {type(rows).__name__}, not a list of rows")
        yield from rows
    else:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(line for line in lines if line.strip()):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise RowError(f"{file.name}:{number}: {error}") from error


def _parquet_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{file} is a parquet file: `pip install pyarrow`, or convert it to .jsonl") from None
    with pyarrow.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()


def _reason(error: Exception) -> str:
    return f"field {error} is missing" if isinstance(error, KeyError) else str(error)
