"""Rows of the released RL files: `prompt`, `reward_model`, `data_source`, `images`, `extra_info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dv2_jax.curation.forms.mmsearch_r1_rows import is_mmsearch_r1
from dv2_jax.curation.source_form import SourceForm, SourceRow, register_form
from dv2_jax.data.row_fields import RowReader, parse_question


@register_form
class ReleasedRL(SourceForm):
    """A question with its own prompt, checked as training checks it."""

    name = "released_rl"

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return "prompt" in row and not is_mmsearch_r1(row)

    def parse(self, row: Mapping[str, Any], id_: str, reader: RowReader) -> SourceRow | None:
        question = parse_question(row, id_, reader)
        return None if question is None else SourceRow(question)
