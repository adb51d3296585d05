"""Rows of FVQA and of the other sets of MMSearch-R1 (hub: lmms-lab/FVQA).

All accepted answers become aliases of the reference, and `data_id` is the key of the released image-search results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dv2_jax.curation.source_form import SourceForm, SourceRow, register_form
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader
from dv2_jax.evaluation.benchmarks.mmsearch_r1_benchmark import read_mmsearch_r1


def is_mmsearch_r1(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has the fields of MMSearch-R1."""
    reward = row.get("reward_model")
    return "prompt" in row and "data_id" in row and isinstance(reward, Mapping) and "candidate_answers" in reward


@register_form
class MMSearchR1(SourceForm):
    """A search question with one image and all accepted answers."""

    name = "mmsearch_r1"

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return is_mmsearch_r1(row)

    def parse(self, row: Mapping[str, Any], id_: str, reader: RowReader) -> SourceRow | None:
        fields = read_mmsearch_r1(row, reader)
        if fields is None:
            return None
        answer, *others = fields.answers
        meta = {"index": fields.id, "aliases": others} | ({"category": fields.category} if fields.category else {})
        return SourceRow(
            Question(
                id=fields.id,
                skill="search",
                data_source="search",
                text=fields.text,
                images=fields.images,
                answer=answer,
                meta=meta,
            )
        )
