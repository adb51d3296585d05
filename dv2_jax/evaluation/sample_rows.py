"""Rows for several samples per question: the mean over samples, and pass@k."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.evaluation.benchmarks.benchmark import ResultRow, Score
from dv2_jax.evaluation.statistics import pass_at_k, sample_sizes


def sample_rows(scores: Sequence[Score], samples: int) -> list[ResultRow]:
    """Returns the row `mean@k` of `samples` answers per question, and `pass@j` for several j; none for a single sample.

    A question of which fewer than j answers are scored has no pass@j: it counts as failed there.
    """
    if samples == 1:
        return []
    questions: dict[str, list[Score]] = {}
    for score in scores:
        questions.setdefault(score.question_id, []).append(score)
    rows = [ResultRow.from_scores(f"mean@{samples}", scores)]
    for k in sample_sizes(samples)[1:]:
        solved = [_pass_at(k, question_id, members) for question_id, members in questions.items()]
        rows.append(ResultRow.from_scores(f"pass@{k}", solved))
    return rows


def _pass_at(k: int, question_id: str, members: Sequence[Score]) -> Score:
    scored = [score for score in members if score.value is not None]
    known = {"question_id": question_id, "cluster": members[0].cluster}
    if len(scored) < k:
        return Score(None, f"{len(scored)} of {len(members)} samples have a score", **known)
    return Score(pass_at_k(sum(score.value == 1 for score in scored), len(scored), k), **known)
