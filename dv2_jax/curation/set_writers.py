"""Writes the released formats: SFT conversations as one JSON list, RL rows as parquet. Rows are streamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dv2_jax.data.question import Question
from dv2_jax.files import PARTIAL, atomic_writer

RL_FILE, SFT_FILE = "rl.parquet", "sft.json"
GROUP_ROWS, GROUP_BYTES = 1024, 32 << 20  # of one row group of parquet; a row may hold megabytes of images
ENV_NAME = "deepeyes_v2"  # selects the environment in the released trainer
# The fields of `extra_info` that every row has, with their types.
_FIELDS = {
    **dict.fromkeys(("question", "answer", "index", "skill", "verifier", "unit", "kind"), "text"),
    **dict.fromkeys(("tolerance", "relative_tolerance"), "number"),
    **dict.fromkeys(("aliases", "choices"), "texts"),
}


class SFTWriter:
    """Writes `{"messages": …, "images": [path, …]}` objects; `images` is always present, as an empty list if need be.

    Mixing rows with and without the field makes Arrow infer two types, and LLaMA-Factory then fails.
    """

    def __init__(self, file: IO[str]):
        self._file = file
        self.rows = 0

    def write(self, messages: list[dict[str, str]], images: list[str]) -> None:
        """Appends a conversation; `images` are paths relative to the file."""
        row = json.dumps({"messages": messages, "images": images}, ensure_ascii=False)
        self._file.write(("[\n" if self.rows == 0 else ",\n") + row)
        self.rows += 1

    def finish(self) -> None:
        """Closes the list."""
        self._file.write("\n]\n" if self.rows else "[]\n")


@contextlib.contextmanager
def sft_writer(path: Path) -> Iterator[SFTWriter]:
    """Opens a writer whose file appears under `path` only when the block ends without an error."""
    with atomic_writer(path) as file:
        writer = SFTWriter(file)
        yield writer
        writer.finish()


def write_rl_file(
    path: Path,
    questions: Iterable[tuple[Question, list[dict[str, str]]]],
    other_fields: Mapping[str, str] | None = None,
) -> int:
    """Writes RL rows and returns their number; an interrupted call leaves no file.

    Args:
        questions: (question, its system and user message).
        other_fields: further fields of `extra_info` with their types, as `find_other_fields` returns them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    other_fields = other_fields or {}
    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    types = {"text": text, "whole": pa.int64(), "number": pa.float64(), "flag": pa.bool_(), "texts": pa.list_(text)}
    extra = pa.struct(
        [
            *((name, types[kind]) for name, kind in _FIELDS.items()),
            *((name, types.get(kind, text)) for name, kind in other_fields.items()),
        ]
    )
    schema = pa.schema(
        [
            ("data_source", text),
            ("prompt", pa.list_(message)),
            ("images", pa.list_(pa.struct([("bytes", pa.binary())]))),
            ("env_name", text),
            ("reward_model", pa.struct([("ground_truth", text), ("style", text)])),
            ("extra_info", extra),
        ]
    )
    partial, count = _partial(path), 0
    with pq.ParquetWriter(partial, schema) as writer:
        batch: list[dict[str, Any]] = []
        size = 0
        for question, prompt in questions:
            batch.append(rl_row(question, prompt, other_fields))
            count += 1
            size += sum(map(len, question.images))
            if len(batch) == GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch, size = [], 0
        if batch or not count:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    os.replace(partial, path)
    return count


def find_other_fields(metas: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the fields of `extra_info` that are not ours, with the type that holds all of their values.

    A field whose values have several types is `json`: its values are written as JSON text.
    """
    found: dict[str, set[str]] = {}
    for meta in metas:
        for name, value in meta.items():
            if name not in _FIELDS and value is not None:
                found.setdefault(name, set()).add(_kind(value))
    fields = {}
    for name, kinds in sorted(found.items()):
        fields[name] = "number" if kinds == {"whole", "number"} else next(iter(kinds)) if len(kinds) == 1 else "json"
    return fields


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return "whole"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "texts"
    return {str: "text", float: "number"}.get(type(value), "json")


def rl_row(
    question: Question, prompt: list[dict[str, str]], other_fields: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns a question as a row of the released RL format; what grades the answer is in `extra_info`."""
    meta = question.meta
    aliases = meta.get("aliases")
    others = {}
    for name, kind in (other_fields or {}).items():
        value = meta.get(name)
        is_json = kind == "json" and value is not None
        others[name] = json.dumps(value, ensure_ascii=False, sort_keys=True) if is_json else value
    return {
        "data_source": question.data_source,
        "prompt": prompt,
        "images": [{"bytes": bytes(image)} for image in question.images],
        "env_name": ENV_NAME,
        "reward_model": {"ground_truth": question.answer, "style": "rule"},
        "extra_info": {
            "question": meta.get("question", question.text),
            "answer": str(meta.get("answer", question.answer)),
            "index": str(meta.get("index", question.id)),
            "skill": question.skill,
            "verifier": question.verifier,
            "unit": meta.get("unit"),
            "kind": None if meta.get("kind") is None else str(meta["kind"]),
            "tolerance": meta.get("tolerance"),
            "relative_tolerance": meta.get("relative_tolerance"),
            "aliases": [aliases] if isinstance(aliases, str) else aliases and list(aliases),
            "choices": _choices(meta.get("choices"), question.id),
            **others,
        },
    }


def _choices(choices: Any, row_id: str) -> list[str] | None:
    """Returns the wordings of choices as a list, whose positions are the labels A, B, …

    Raises:
        ValueError: the labels of a mapping are others.
    """
    if not choices:
        return None
    if isinstance(choices, Mapping):
        labels = [str(label).strip("(). ").upper() for label in choices]
        if labels != [chr(ord("A") + i) for i in range(len(labels))]:
            raise ValueError(f"row {row_id!r}: choices have the labels {list(choices)}, not A, B, …")
        return [str(wording) for wording in choices.values()]
    return [str(wording) for wording in choices]


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}{PARTIAL}")
