"""MMSearch: questions about recent events, of which 171 of 300 have an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.reference_benchmark import REFERENCES, ReferenceBenchmark
from dv2_jax.evaluation.scorers.token_f1 import token_f1

WITH_IMAGE, WITHOUT_IMAGE, F1 = "image", "no image", "F1"


@register_benchmark
class MMSearch(ReferenceBenchmark):
    """The end-to-end task of MMSearch, without its fixed pipeline of query, reranking and summary.

    `overall` is the judged accuracy on the rows with an image, which is the paper's column; `F1` is the official token F1,
    the largest over all accepted answers, on all rows.
    """

    name = "mmsearch"
    title = "MMSearch"
    source = "hf: CaraJ/MMSearch"
    files = ("end2end.parquet", "MMSearch/**/end2end*.parquet", "mmsearch*.parquet", "MMSearch*.parquet")
    published_rows = 300
    columns = ("sample_id", "query", "query_image", "gt_answer", "alternative_gt_answers")
    protocol = (
        "overall: judged accuracy on the rows with an image (171 of 300), as MMSearch-R1 and the paper report; F1: official,"
        " all rows; code and both searches instead of the official pipeline"
    )

    def parse(self, row: Mapping[str, Any], number: int, reader: RowReader) -> Question | None:
        text, answer = reader.text(row, "query", "query"), reader.text(row, "gt_answer", "gt_answer")
        others = reader.text_list(row.get("alternative_gt_answers"), "alternative_gt_answers")
        id_, image = row.get("sample_id"), row.get("query_image")
        if not isinstance(id_, (str, int)) or not str(id_).strip():
            reader.wrong_type("sample_id", id_, "a text", "give each row an id of its own")
        images = () if _is_absent(image) else (reader.image(image, "query_image"),)
        if reader.issues:
            return None
        return Question(
            id=str(id_),
            skill=WITH_IMAGE if images else WITHOUT_IMAGE,
            data_source="search",
            text=text,
            images=images,
            answer=answer,
            meta={REFERENCES: list(dict.fromkeys([answer, *others])), "area": row.get("area")},
        )

    def details(self, question: Question, prediction: str) -> dict[str, Any]:
        return {"f1": token_f1(prediction, question.meta[REFERENCES])}

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        with_image = [score for score in scores if score.group == WITH_IMAGE]
        without = [score for score in scores if score.group != WITH_IMAGE]
        return [
            *([ResultRow.from_scores(f"judged, {WITHOUT_IMAGE}", without)] if without else []),
            ResultRow.from_scores(F1, [_f1_score(score) for score in scores]),
            ResultRow.from_scores(OVERALL_ROW, with_image),
        ]


def _f1_score(score: Score) -> Score:
    """Returns the official score, which needs no judge; an answer that failed has none."""
    if "f1" not in score.details:
        return score
    return replace(score, value=score.details["f1"], failure="", is_undecided=False)


def _is_absent(image: Any) -> bool:
    return image is None or (isinstance(image, Mapping) and not any(image.values()))
