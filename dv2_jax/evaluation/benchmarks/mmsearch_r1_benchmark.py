"""FVQA, InfoSeek and SimpleVQA, in the parquet format and with the protocol of MMSearch-R1, which DeepEyesV2 follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.reference_benchmark import REFERENCES, ReferenceBenchmark


class MMSearchR1Benchmark(ReferenceBenchmark):
    """A benchmark in MMSearch-R1's schema: `prompt`, `images`, `reward_model` with `ground_truth` and `candidate_answers`."""

    columns = ("prompt", "images", "reward_model", "data_id")
    protocol = (
        "accuracy: exact match after normalization with one of the candidate answers, else a judge (MMSearch-R1: GPT-4o);"
        " code and both searches; comparable only with the same search results"
    )

    def parse(self, row: Mapping[str, Any], number: int, reader: RowReader) -> Question | None:
        fields = read_mmsearch_r1(row, reader)
        if fields is None:
            return None
        return Question(
            id=fields.id,
            skill=fields.category or self.name,
            data_source="search",
            text=fields.text,
            images=fields.images,
            answer=fields.answers[0],
            meta={
                REFERENCES: list(fields.answers),
                "index": fields.id,
            },  # `index`: the key in the released search results
        )


@dataclass(frozen=True)
class MMSearchR1Fields:
    """The fields of a row. `answers` has the reference answer first, then the other accepted ones."""

    id: str
    text: str
    images: tuple[bytes, ...]
    answers: tuple[str, ...]
    category: str  # `search_free` or `search_required`; empty in test sets


def read_mmsearch_r1(row: Mapping[str, Any], reader: RowReader) -> MMSearchR1Fields | None:
    """Reads a row in MMSearch-R1's schema; returns None if it has added issues to `reader`.

    Of the prompt, which describes MMSearch-R1's own protocol, only the question is used.
    """
    messages, images = reader.messages("prompt"), reader.images()
    reward = reader.mapping("reward_model", required=True)
    answer = reader.text(reward, "ground_truth", "reward_model.ground_truth")
    others = reader.text_list(reward.get("candidate_answers"), "reward_model.candidate_answers")
    id_ = reader.text(row, "data_id", "data_id")
    user = next((message["content"] for message in reversed(messages or ()) if message["role"] == "user"), "")
    text = user.replace(IMAGE_MARKER, "").strip()
    if messages is not None and not text:
        reader.add("bad value", "prompt", "has no user message with text", "add the question")
    if reader.issues:
        return None
    assert id_ is not None and answer is not None and images is not None  # otherwise there are issues
    category = row.get("category")
    answers = tuple(dict.fromkeys([answer, *others]))
    return MMSearchR1Fields(id_, text, images, answers, category if isinstance(category, str) else "")


@register_benchmark
class FVQA(MMSearchR1Benchmark):
    """The test split of FVQA; its image search results are published next to it and can be replayed."""

    name = "fvqa"
    title = "FVQA-test"
    source = "hf: lmms-lab/FVQA"
    files = ("fvqa_test*.parquet", "FVQA/**/fvqa_test*.parquet", "FVQA/**/test*.parquet", "fvqa_test*.json*")
    published_rows = 1_800


@register_benchmark
class InfoSeek(MMSearchR1Benchmark):
    """The 2,000 rows of InfoSeek that MMSearch-R1 evaluates."""

    name = "infoseek"
    title = "InfoSeek"
    source = "MMSearch-R1's subset"
    files = ("infoseek*.parquet", "InfoSeek*.parquet", "InfoSeek/**/*.parquet", "infoseek*.json*")
    published_rows = 2_000


@register_benchmark
class SimpleVQA(MMSearchR1Benchmark):
    """The English rows of SimpleVQA with the protocol of MMSearch-R1; VLMEvalKit's is the benchmark `simplevqa_kit`."""

    name = "simplevqa"
    title = "SimpleVQA"
    source = "MMSearch-R1's subset (English)"
    files = ("simplevqa*.parquet", "SimpleVQA*.parquet", "SimpleVQA/**/*.parquet", "simplevqa*.json*")
    published_rows = 1_013
