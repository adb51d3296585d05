"""Rows of FVQA and of the other sets of MMSearch-R1 (hub: lmms-lab/FVQA).

Their prompt describes MMSearch-R1's own protocol, so that only the question is taken from it. All accepted answers become
aliases of the reference, and `data_id` is the key of the released image-search results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dv2_jax.curation.source_form import SourceForm, SourceRow, register_form
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader


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
        messages, images = reader.messages("prompt"), reader.images()
        reward = reader.mapping("reward_model", required=True)
        answer = reader.text(reward, "ground_truth", "reward_model.ground_truth")
        others = reader.text_list(reward.get("candidate_answers"), "reward_model.candidate_answers")
        own_id = reader.text(row, "data_id", "data_id")
        user = next((m["content"] for m in reversed(messages or ()) if m["role"] == "user"), "")
        text = user.replace(IMAGE_MARKER, "").strip()
        if messages is not None and not text:
            reader.add("bad value", "prompt", "has no user message with text", "add the question")
        if reader.issues:
            return None
        assert answer is not None and own_id is not None and images is not None  # else there were issues
        aliases = [other for other in dict.fromkeys(others) if other != answer]
        category = row.get("category")
        meta = {"index": own_id, "aliases": aliases} | ({"category": category} if isinstance(category, str) else {})
        return SourceRow(
            Question(
                id=own_id, skill="search", data_source="search", text=text, images=images, answer=answer, meta=meta
            )
        )
