"""The stage deduplicate: rows that repeat an earlier row, or a question of a benchmark on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dv2_jax.config import CurateConfig
from dv2_jax.curation.benchmark_sets import benchmark_sets
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.decisions import DROPPED, Decision
from dv2_jax.curation.overlap import Overlap, OverlapIndex
from dv2_jax.curation.stage import CurationStage, StagePlan, register_stage
from dv2_jax.curation.text_overlap import TemplateSentences


@register_stage
class Deduplicate(CurationStage):
    """Compares every row with the benchmarks, then with the rows before it, in the order of ids.

    A row is dropped if question and image match; against a benchmark, also if an image alone matches strongly (equal,
    re-encoded, resized, cropped); and, where neither has an image, if the question matches. Weaker matches of images with
    a benchmark are stored as pairs to review.
    """

    name = "deduplicate"
    is_global = True

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        return Decision(DROPPED, self.name, entries[0]["reason"]) if entries[0]["drop"] else before

    def run(self, curation: Curation) -> None:
        waiting = set(curation.unlabeled_ids(self.name))
        if not waiting:
            return
        store, journal = curation.store, curation.journal(self.name)
        ids = curation.reaching_ids(self.name)
        templates = TemplateSentences.fit(store.document(row_id)["text"] for row_id in ids)
        benchmarks = OverlapIndex(templates, image_suffices=True)
        for name, questions in benchmark_sets(curation.config):
            with curation.display.track(f"indexing {name}", len(questions), unit="questions") as bar:
                for number in range(len(questions)):
                    question = questions[number]
                    benchmarks.add(f"{name}:{question.id}", question)
                    bar.advance()
        rows = OverlapIndex(templates, image_suffices=False)
        with curation.display.track(self.name, len(ids), unit="rows") as bar:
            for row_id in ids:
                question = store.row(row_id).question
                if row_id in waiting:
                    found = benchmarks.overlaps(question), rows.overlaps(question)
                    journal.add(row_id, _labels(*found))
                if not journal.get(row_id)["drop"]:
                    rows.add(row_id, question)
                bar.advance()

    def plan(self, curation: Curation) -> StagePlan:
        return StagePlan(self.name, len(curation.unlabeled_ids(self.name)), note="no requests")


def _labels(with_benchmarks: Iterable[Overlap], with_rows: Iterable[Overlap]) -> dict[str, Any]:
    pairs = [asdict(overlap) | {"set": "benchmark"} for overlap in with_benchmarks]
    pairs += [asdict(overlap) | {"set": "rows"} for overlap in with_rows]
    strong = next((pair for pair in pairs if pair["drop"]), None)
    reason = "" if strong is None else f"{strong['reason']} of {strong['other']}"
    return {"drop": strong is not None, "reason": reason, "pairs": pairs[:10]}
