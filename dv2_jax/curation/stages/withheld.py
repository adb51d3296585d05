"""The stage withheld: whether the tool helped. The question is asked again without the output of the first call.

Correct answers often come with calls that contribute nothing (Beacon, arXiv 2607.28595, drops such trajectories in a second
pass). The model whose abilities are labeled reads the question, and the trajectory up to its first call, and answers
without the output. If it is correct nevertheless, the output was not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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


@register_stage
class Withheld(SamplingStage):
    """Drops trajectories whose question is answered without the output of their first call.

    Trajectories without calls are not asked about.
    """

    name = "withheld"
    with_tools = False
    is_single_shot = True

    def applies(self, before: Decision, form: RowForm) -> bool:
        return before.destination == COLD_START and form != "long_cot"

    def samples(self, settings: CurateConfig) -> int:
        return settings.withheld_samples

    def question(self, curation: Curation, row_id: str) -> Question:
        question = curation.store.row(row_id).question
        turn = first_call(curation, row_id)
        assert turn is not None  # rows without calls are labeled before any request is made
        marked = IMAGE_MARKER in question.text
        text = question.text if marked else f"{IMAGE_MARKER}\n" * len(question.images) + question.text
        shown = turn["text"].replace(IMAGE_MARKER, "")
        return replace(question, messages=None, text=_WITHHELD.format(question=text, turn=shown))

    def run(self, curation: Curation) -> None:
        for row_id in curation.unlabeled_ids(self.name):
            if first_call(curation, row_id) is None:
                for sample in range(self.samples(curation.settings)):
                    curation.journal(self.name).add(row_id, _NO_CALL, sample)
        super().run(curation)

    def decide_by_rate(self, solved: Solved, settings: CurateConfig, before: Decision) -> Decision:
        if solved.correct > settings.max_solved_withheld:
            count = f"{solved.correct} of {solved.n} answers"
            return Decision(DROPPED, self.name, f"the tool did not help: {count} are correct without its output")
        return before


def first_call(curation: Curation, row_id: str) -> Mapping[str, Any] | None:
    """Returns the first turn of a row's trajectory that calls a tool, None without one."""
    return next((turn for turn in curation.turns(row_id) if turn["kind"] not in NOT_TOOLS), None)


# The labels of a trajectory that calls nothing: no output could be withheld.
_NO_CALL: Mapping[str, Any] = {
    "attempt": 1,
    "correct": False,
    "failure": "",
    "finish": "",
    "tool_calls": 0,
    "failed_calls": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "requests": 0,
    "seconds": 0.0,
    "cost": None,
    "model": "",
}
