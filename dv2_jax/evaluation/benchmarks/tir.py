"""TIR-Bench: 13 tasks for models that process images while they reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dv2_jax.config import Config
from dv2_jax.data.faults import clip
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader
from dv2_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkAnswer, Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import register_benchmark
from dv2_jax.evaluation.benchmarks.reference_benchmark import CODE_ONLY
from dv2_jax.evaluation.readers.locate import find_files
from dv2_jax.evaluation.readers.table_file import IMAGE_DIGEST, read_table
from dv2_jax.evaluation.scorers.tir_rules import CORRECTED_OCR, OCR, TASKS, answer_kind, read_answer, score_answer
from dv2_jax.rollout.question_sources import ReadRows

_NOTHING = "none"
_FORMS = {
    "letter": "the letter of the chosen option, such as B",
    "letters": "the letters of all chosen options without separators, such as ABD",
    "integer": "one integer",
    "decimal": "one number",
    "pair": "two integers separated by a comma, such as 3, 7",
    "set": "integers separated by commas, such as 1, 4, 5",
    "grid": "the numbers in their order, separated by commas",
}


@register_benchmark
class TIRBench(Benchmark):
    """TIR-Bench. Jigsaw and spot-the-difference give partial credit; `overall` is the mean over all questions.

    The official evaluation lets a language model extract each answer but those of `ocr`. Here an answer that is nothing but
    a letter, a number or a list is taken as it is, and the judge extracts the others; without one they are failed.
    """

    name = "tir"
    title = "TIR-Bench"
    source = "hf: Agents-X/TIR-Bench"
    files = ("TIR-Bench.json*", "TIR-Bench/**/TIR*.json*", "TIR-Bench/*.json*", "TIR-Bench/**/*.parquet")
    published_rows = 1_215
    tools = CODE_ONLY
    uses_judge = True
    columns = ("id", "task", "prompt", "image_1", "image_2", "answer", "meta_data")
    protocol = (
        "official rules per task, partial credit; answers that are not bare are extracted by the judge; code, no search"
    )

    def load(self, config: Config, read: ReadRows) -> Sequence[Question]:
        return read_table(find_files(config, self.files), self.columns, self.parse, config.data)

    def parse(self, row: Mapping[str, Any], number: int, reader: RowReader) -> Question | None:
        """Converts a row; returns None if it has added issues to `reader`."""
        text, task = reader.text(row, "prompt", "prompt"), row.get("task")
        if task not in TASKS:
            reader.add("bad value", "task", f"is {clip(task)}, none of {', '.join(TASKS)}", "correct the task")
        images = [reader.image(row[name], name) for name in ("image_1", "image_2") if row.get(name) is not None]
        if not images:
            reader.add("image", "image_1", "is missing", "add the image")
        first = row.get("image_1")
        answer = "" if row.get("answer") is None else str(row["answer"])
        if task == OCR and isinstance(first, str):
            answer = next((right for part, right in CORRECTED_OCR.items() if part in first), answer)
        kind = _kind(reader, task, answer)
        difficulty = _difficulty(reader, row) if kind == "grid" else 0
        if reader.issues:
            return None
        return Question(
            id=str(row["id"]),
            skill=task,
            data_source="perception",
            text=text,
            images=tuple(images),
            answer=answer,
            meta={"kind": kind, "difficulty": difficulty},
        )

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        kind, difficulty = question.meta["kind"], question.meta["difficulty"]
        fields: dict[str, Any] = {"group": question.skill, "cluster": question.meta.get(IMAGE_DIGEST, "")[:16]}
        prediction = answer.prediction.strip()
        if not prediction:
            return Score(0.0, **fields)
        extracted = read_answer(kind, prediction, question.text, difficulty)
        if extracted is None:
            if answer.judge is None:
                return Score(
                    None, "needs a judge, which extracts the answer: set --config.reward.judge_base_url=URL", **fields
                )
            extracted = answer.judge.ask(extraction_messages(kind, question.text, prediction)).strip()
            if extracted.lower().strip(".") == _NOTHING:
                extracted = ""
        value = score_answer(kind, extracted, question.answer, question.text, difficulty) if extracted else 0.0
        return Score(value, extracted=extracted, **fields)


def extraction_messages(kind: str, question: str, response: str) -> list[dict[str, Any]]:
    """Returns the prompt with which a judge copies the final answer out of a response."""
    text = (
        "Copy the final answer out of a response to a question. Do not solve the question, and do not correct the response."
        f" Write {_FORMS[kind]} and nothing else; if the response gives no answer, write {_NOTHING}.\n\n"
        f"Question:\n{question}\n\nResponse:\n{response}\n\nFinal answer:"
    )
    return [{"role": "user", "content": text}]


def _kind(reader: RowReader, task: Any, answer: str) -> str:
    if not answer.strip():
        reader.add("missing field", "answer", "is missing", "add it")
    elif task in TASKS:
        try:
            return answer_kind(task, answer.strip())
        except ValueError as error:
            reader.add("bad value", "answer", str(error), "correct the answer, or leave the row out")
    return ""


def _difficulty(reader: RowReader, row: Mapping[str, Any]) -> int:
    meta = row.get("meta_data") or row.get("metadata")
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except ValueError:
            meta = None
    found = meta.get("difficulty") if isinstance(meta, Mapping) else None
    if not str(found).isdecimal() or int(found) < 1:
        fix = "write the number of pieces per side"
        reader.add("bad value", "meta_data.difficulty", f"is {clip(found)}, no number of pieces per side", fix)
        return 0
    return int(found)
