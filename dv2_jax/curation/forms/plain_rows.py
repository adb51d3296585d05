"""Rows with the fields `question` and `answer`, as people write them: JSONL, CSV or parquet.

| field | contents |
|---|---|
| `question`, `answer` | text; both required |
| `image` or `images` | path relative to the file, `{"bytes": …}`, or a list of them; in CSV a path, base64 text, or a JSON list |
| `id` | unique in the source; by default the file's name and the row's number |
| `data_source` | perception, reason or search; by default perception with images and reason without |
| `skill`, `verifier` | by default the data source, and the rule that fits it |
| `choices`, `aliases` | a list, or its JSON text |
| `tolerance`, `relative_tolerance`, `unit` | for numbers |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dv2_jax.curation.source_form import SourceForm, SourceRow, register_form
from dv2_jax.data.faults import clip
from dv2_jax.data.row_fields import RowReader, is_base64_text, parse_question

_OPTIONS = ("verifier", "skill", "unit", "tolerance", "relative_tolerance", "choices", "aliases", "index")


@register_form
class Plain(SourceForm):
    """A question with its reference answer; the run's prompt is used."""

    name = "plain"

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return "question" in row and "answer" in row and "prompt" not in row and "messages" not in row

    def parse(self, row: Mapping[str, Any], id_: str, reader: RowReader) -> SourceRow | None:
        images = _images(row, reader)
        extra = {"question": row["question"]} | {
            name: _option(name, row[name], reader) for name in _OPTIONS if row.get(name) not in (None, "")
        }
        source = row.get("data_source") or ("perception" if images else "reason")
        answer = row["answer"]
        if isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer):
            answer = str(answer)
        text = row["question"]
        reader.text(row, "question", "question")
        reader.text({"answer": answer}, "answer", "answer")
        if reader.issues:
            return None
        released = {
            "data_source": source,
            "prompt": [{"role": "user", "content": text}],
            "images": images,
            "reward_model": {"ground_truth": answer},
            "extra_info": extra,
        }
        inner = RowReader(released, reader.folder)
        question = parse_question(released, id_, inner)
        reader.issues += inner.issues
        reader.image_paths += inner.image_paths
        if question is None:
            return None
        own_id = str(row["id"]) if row.get("id") not in (None, "") else id_
        meta = {name: value for name, value in extra.items() if name not in ("question", "skill", "verifier")}
        return SourceRow(replace(question, id=own_id, messages=None, meta=meta))


def _images(row: Mapping[str, Any], reader: RowReader) -> list[Any]:
    """Returns the images of a row as a list of values that `RowReader.image` reads."""
    value = row.get("images") if row.get("images") not in (None, "") else row.get("image")
    if value in (None, "", [], ()):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            reader.add("image", "images", f"is no JSON list: {clip(value)}", 'write ["a.png", "b.png"]')
            return []
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [{"bytes": item} if isinstance(item, str) and is_base64_text(item) else item for item in values]


def _option(name: str, value: Any, reader: RowReader) -> Any:
    """Returns an option of the verifier; text in a CSV cell becomes a number or a list where the option is one."""
    if not isinstance(value, str):
        return value
    if name in ("tolerance", "relative_tolerance"):
        try:
            return float(value)
        except ValueError:
            reader.add("bad value", name, f"is {clip(value)}, no number", "write a number, or leave it empty")
            return None
    if name in ("choices", "aliases") and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except ValueError:
            reader.add("bad value", name, f"is no JSON list: {clip(value)}", 'write ["first", "second"]')
            return None
    return value
