"""The stage deduplicate: rows that repeat an earlier row, or a question of a benchmark on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dv2_jax.config import CurateConfig
from dv2_jax.curation.benchmark_sets import benchmark_sets
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.decisions import DROPPED, Decision
from dv2_jax.curation.overlap import BENCHMARK, ROWS, BenchmarkOverlapIndex, Overlap, RowOverlapIndex
from dv2_jax.curation.stage import CurationStage, StagePlan, register_stage
from dv2_jax.curation.text_overlap import TemplateSentences
from dv2_jax.data.question import Question


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
        benchmarks = BenchmarkOverlapIndex(templates)
        places: dict[str, tuple[Sequence[Question], int]] = {}
        for name, questions in benchmark_sets(curation.config):
            with curation.display.track(f"indexing {name}", len(questions), unit="questions") as bar:
                for number in range(len(questions)):
                    question = questions[number]
                    key = f"{name}:{question.id}"
                    benchmarks.add(key, question)
                    places[key] = questions, number
                    bar.advance()
        rows = RowOverlapIndex(templates, lambda row_id: store.row(row_id).question.images)
        with curation.display.track(self.name, len(ids), unit="rows") as bar:
            for row_id in ids:
                question = store.row(row_id).question
                if row_id in waiting:
                    labels = _labels(benchmarks.overlaps(question), rows.overlaps(question))
                    for pair in labels["pairs"]:
                        if pair["set"] == BENCHMARK:
                            questions, number = places[pair["other"]]
                            pair["images"] = [curation.store_image(image) for image in questions[number].images]
                    journal.add(row_id, labels)
                label = journal.get(row_id)
                assert label is not None
                if not label["drop"]:
                    rows.add(row_id, question)
                bar.advance()

    def plan(self, curation: Curation) -> StagePlan:
        return StagePlan(self.name, len(curation.unlabeled_ids(self.name)), note="no requests")


def _labels(with_benchmarks: Iterable[Overlap], with_rows: Iterable[Overlap]) -> dict[str, Any]:
    pairs = [asdict(overlap) | {"set": BENCHMARK} for overlap in with_benchmarks]
    pairs += [asdict(overlap) | {"set": ROWS} for overlap in with_rows]
    strong = next((pair for pair in pairs if pair["drop"]), None)
    reason = "" if strong is None else f"{strong['reason']} of {strong['other']}"
    return {"drop": strong is not None, "reason": reason, "pairs": pairs[:10]}
