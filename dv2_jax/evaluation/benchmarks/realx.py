"""RealX-Bench: questions about real photographs that need perception, search and reasoning, alone or together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dv2_jax.config import Config
from dv2_jax.data.faults import clip
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, ResultRow, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.reference_benchmark import REFERENCES, ReferenceBenchmark
from dv2_jax.rewards import answers_match
from dv2_jax.rollout.question_sources import ReadRows

# Column of the file → row of the paper's table.
ABILITIES = {"perception": "perception", "reason": "reasoning", "search": "search"}
INTEGRATION = "integration"
PUBLIC_ROWS, PAPER_ROWS = 194, 300
_YES_OR_NO = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}


@register_benchmark
class RealX(ReferenceBenchmark):
    """RealX-Bench. Of its 300 questions 194 are public, and scores on the two differ: the title says which were asked.

    A question may need several abilities and then counts in several rows; `integration` are those that need all three.
    """

    name = "realx"
    title = "RealX-Bench"
    source = "hf: glowol/RealXBench"
    files = ("RealXBench*.parquet", "RealXBench/**/*.parquet", "RealXBench*.json*", "RealXBench/**/*.json*")
    published_rows = PUBLIC_ROWS
    columns = ("query", "answer", *ABILITIES, "image")
    protocol = (
        "accuracy: equal as text or number to one of the answers, else a judge (the paper's is unknown); code and both searches;"
        f" the paper's numbers are of {PAPER_ROWS} rows, of which {PUBLIC_ROWS} are public"
    )

    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        questions = super().load(config, read)
        self.title = realx_title(len(questions))
        return questions

    def parse(self, row: Mapping[str, Any], number: int, reader: RowReader) -> Question | None:
        text, answer = reader.text(row, "query", "query"), reader.text(row, "answer", "answer")
        flags = {name: _flag(reader, row.get(name), name) for name in ABILITIES}
        image = reader.image(row.get("image"), "image")
        if reader.issues:
            return None
        needed = [title for name, title in ABILITIES.items() if flags[name]]
        return Question(
            id=f"{number:03d}",
            skill="+".join(needed) or "none",
            data_source="search",
            text=text,
            images=(image,),
            answer=answer,
            meta={REFERENCES: accepted_answers(answer), "abilities": needed},
        )

    def matches(self, question: Question, prediction: str) -> bool:
        return answers_match(prediction, question.answer, "text", {"aliases": question.meta[REFERENCES]})

    def details(self, question: Question, prediction: str) -> dict[str, Any]:
        return {"abilities": question.meta["abilities"]}

    def aggregate(self, scores: Sequence[Score]) -> list[ResultRow]:
        rows = [
            ResultRow.from_scores(title, [score for score in scores if title in _abilities(score)])
            for title in ABILITIES.values()
        ]
        integration = [score for score in scores if len(_abilities(score)) == len(ABILITIES)]
        return [*rows, ResultRow.from_scores(INTEGRATION, integration), ResultRow.from_scores(OVERALL_ROW, scores)]


def realx_title(rows: int) -> str:
    """Returns the title of a file by its number of rows: `RealX-194`, `RealX-300`, or one with the number for any other."""
    return f"RealX-{rows}" if rows in (PUBLIC_ROWS, PAPER_ROWS) else f"RealX-Bench, {rows} other rows"


def accepted_answers(answer: str) -> list[str]:
    """Returns an answer and the alternatives that it joins with " or "."""
    parts = [part.strip() for part in answer.split(" or ")]
    return list(dict.fromkeys([answer, *filter(None, parts)]))


def _abilities(score: Score) -> list[str]:
    """Returns the abilities that a question needs: of the details or, for an answer that failed, of its group."""
    return score.details.get("abilities") or [part for part in score.group.split("+") if part in ABILITIES.values()]


def _flag(reader: RowReader, value: Any, field: str) -> bool | None:
    flag = _YES_OR_NO.get(str(value).strip().lower())
    if flag is None:
        reader.add("bad value", field, f"is {clip(value)}, neither 0 nor 1", "write 1 if the question needs it, else 0")
    return flag
