"""The stage synthesize: teachers write trajectories in our protocol, and every call in them is really executed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from dv2_jax.agent.prompts import PER_TOOL, build_messages
from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.config import CurateConfig
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.curation_rows import RowForm
from dv2_jax.curation.decisions import COLD_START, DROPPED, Decision
from dv2_jax.curation.hints import betrays_hint, with_hint
from dv2_jax.curation.models import Model, open_teacher, response_text
from dv2_jax.curation.stage import CurationStage, StagePlan, register_stage
from dv2_jax.curation.stages.solve_rates import answer_seed, estimate, label_answer
from dv2_jax.curation.teachers import Teacher, run_teachers
from dv2_jax.curation.text_checks import long_cot_fault
from dv2_jax.curation.trajectory_text import turns_to_json
from dv2_jax.evaluation.answerers.answerer import Answer, AnswerRequest


@register_stage
class Synthesize(CurationStage):
    """Asks teachers for a trajectory with a correct answer and no failed call, up to `curate.attempts` times per row.

    Rows are assigned to teachers by a digest of their id, in proportion to the teachers' weights; another attempt asks the
    next teacher. The newest attempt counts. The last `curate.hinted_attempts` attempts have the reference answer in their
    prompt. Rows for long chains of thought are answered in one turn without tools.
    """

    name = "synthesize"

    def run(self, curation: Curation) -> None:
        teachers = run_teachers(curation.settings)
        has_work = True
        while has_work:  # a failed attempt moves a row to another teacher
            has_work = any(
                [
                    self._ask(curation, teachers, teacher, form)
                    for teacher in teachers
                    for form in ("question", "long_cot")
                ]
            )

    def applies(self, before: Decision, form: RowForm) -> bool:
        return before.destination == COLD_START and form != "trajectory"

    def is_complete(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig) -> bool:
        return bool(entries) and (entries[0]["kept"] or entries[0]["attempt"] >= settings.attempts)

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        return before if entries[0]["kept"] else Decision(DROPPED, self.name, entries[0]["reason"])

    def plan(self, curation: Curation) -> StagePlan:
        rows = curation.unlabeled_ids(self.name)
        return estimate(self.name, len(rows), len(rows), curation)

    def _ask(self, curation: Curation, teachers: Sequence[Teacher], teacher: Teacher, form: str) -> bool:
        """Asks one teacher for all rows of a form that are its turn; returns whether there were any."""
        rows = [
            (row_id, attempt)
            for row_id, attempt in self._missing(curation)
            if curation.store.form(row_id) == form and choose_teacher(teachers, row_id, attempt) == teacher
        ]
        if not rows:
            return False
        with (
            open_teacher(curation, teacher, with_tools=form != "long_cot") as model,
            curation.display.track(f"{self.name}: {teacher.name}", len(rows), unit="trajectories") as bar,
            closing(model.answerer.answers(self._requests(curation, rows))) as answers,
        ):
            for answer in answers:
                curation.journal(self.name).add(answer.request.question.id, self._labels(answer, curation, model))
                bar.advance()
                curation.budget.check()
        return True

    def _missing(self, curation: Curation) -> Iterator[tuple[str, int]]:
        """Yields (row, attempt) of the rows without a usable trajectory that may be attempted again."""
        for row_id in curation.unlabeled_ids(self.name):
            entry = curation.journal(self.name).get(row_id)
            yield row_id, 1 if entry is None else entry["attempt"] + 1

    def _requests(self, curation: Curation, rows: Sequence[tuple[str, int]]) -> Iterator[AnswerRequest]:
        for row_id, attempt in rows:
            question = curation.store.row(row_id).question
            if curation.store.form(row_id) == "long_cot":
                question = replace(question, messages=None, text=build_messages(question, PER_TOOL)[-1]["content"])
            if is_hinted(curation.settings, attempt):
                question = with_hint(question)
            yield AnswerRequest(question, 0, attempt, answer_seed(curation, self.name, row_id, attempt))

    def _labels(self, answer: Answer, curation: Curation, model: Model) -> dict[str, Any]:
        labels = label_answer(answer, model.name, response_text(answer, model.tokenizer), curation)
        reason, hinted = labels["failure"], is_hinted(curation.settings, answer.request.attempt)
        texts = [turn.text for turn in answer.trajectory.turns]
        if not reason and not labels["correct"]:
            reason = "wrong answer"
        elif not reason and labels["failed_calls"]:
            reason = f"{labels['failed_calls']} failed calls"
        elif not reason and labels["finish"] != "answer":
            reason = f"ended by {labels['finish']}"
        elif not reason and hinted and betrays_hint(texts):
            reason = "mentions the hint"
        elif not reason and curation.store.form(answer.request.question.id) == "long_cot":
            reason = long_cot_fault(answer.text, run_tools(curation.config.agent))
        turns = [] if reason else turns_to_json(answer.trajectory.turns, curation.store_image)
        if turns and curation.store.form(answer.request.question.id) == "long_cot":
            turns[-1]["text"] = answer.text  # with answer tags, where the teacher wrote none
        return labels | {"hinted": hinted, "kept": not reason, "reason": reason, "turns": turns}


def is_hinted(settings: CurateConfig, attempt: int) -> bool:
    """Returns whether the prompt of an attempt (from 1) has the reference answer."""
    return attempt > settings.attempts - settings.hinted_attempts


def choose_teacher(teachers: Sequence[Teacher], row_id: str, attempt: int) -> Teacher:
    """Returns the teacher of an attempt: the first by weights and the row's digest, then those that follow in turn."""
    digest = hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[8:16]) / 2**64 * sum(teacher.weight for teacher in teachers)
    bounds = itertools.accumulate(teacher.weight for teacher in teachers)
    first = next((number for number, bound in enumerate(bounds) if point < bound), len(teachers) - 1)
    return teachers[(first + attempt - 1) % len(teachers)]
