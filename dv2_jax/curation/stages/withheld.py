"""The stage withheld: whether the tool helped. The question is asked again without the output of the first call.

Correct answers often come with calls that contribute nothing (Beacon, arXiv 2607.28595, drops such trajectories in a second
pass). The model whose abilities are labeled reads the question, and the trajectory up to its first call, and answers
without the output. If it is correct nevertheless, the output was not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dv2_jax.agent.prompts import marked_text
from dv2_jax.agent.tools.base import NOT_TOOLS
from dv2_jax.config import CurateConfig
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.curation_rows import RowForm
from dv2_jax.curation.decisions import COLD_START, DROPPED, Decision, Solved
from dv2_jax.curation.stage import register_stage
from dv2_jax.curation.stages.solve_rates import SamplingStage
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.data.question import Question

_WITHHELD = """\
{question}

Another assistant has begun as follows. The output of its call cannot be shown:

{turn}

Answer the question now, without calling anything, from what you can see and know. Put the answer inside <answer> </answer>."""


NO_CALL = "no_call"  # label of a trajectory that calls nothing: no output could be withheld


@register_stage
class Withheld(SamplingStage):
    """Drops trajectories whose question is answered without the output of their first call.

    Trajectories without calls are not asked about.
    """

    name = "withheld"
    with_tools = False

    def applies(self, before: Decision, form: RowForm) -> bool:
        return before.destination == COLD_START and form != "long_cot"

    def samples(self, settings: CurateConfig) -> int:
        return settings.withheld_samples

    def is_complete(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig) -> bool:
        return _has_no_call(entries) or super().is_complete(entries, settings)

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        return before if _has_no_call(entries) else super().decide(entries, settings, before)

    def question(self, curation: Curation, row_id: str) -> Question:
        question = curation.store.row(row_id).question
        turn = first_call(curation.turns(row_id))
        assert turn is not None  # `_missing` has labeled the rows without calls
        shown = turn["text"].replace(IMAGE_MARKER, "")
        return replace(question, messages=None, text=_WITHHELD.format(question=marked_text(question), turn=shown))

    def _missing(self, curation: Curation) -> Iterator[tuple[str, int, int]]:
        for row_id in curation.unlabeled_ids(self.name):
            if first_call(curation.turns(row_id)) is None:
                curation.journal(self.name).add(row_id, {NO_CALL: True})
        return super()._missing(curation)

    def decide_by_rate(self, solved: Solved, settings: CurateConfig, before: Decision) -> Decision:
        if solved.correct > settings.max_solved_withheld:
            count = f"{solved.correct} of {solved.n} answers"
            return Decision(DROPPED, self.name, f"the tool did not help: {count} are correct without its output")
        return before


def first_call(turns: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the first turn of a trajectory that calls a tool, None without one."""
    return next((turn for turn in turns if turn["kind"] not in NOT_TOOLS), None)


def _has_no_call(entries: Sequence[Mapping[str, Any]]) -> bool:
    return any(NO_CALL in entry for entry in entries)
