"""Counts how many rows of each source every stage kept, and why the others were dropped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dv2_jax.curation.decisions import COLD_START, DROPPED, RL, Decision

if TYPE_CHECKING:
    from dv2_jax.curation.curation import Curation


@dataclass(frozen=True)
class Funnel:
    """Counts per source; the source `all` sums up.

    Attributes:
        columns: `read`, the deciding stages in order (rows that are left after each), `rl`, `cold_start`.
        counts: source → column → rows.
        reasons: (stage, reason with numbers replaced by `#`) → rows.
    """

    columns: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    reasons: Mapping[tuple[str, str], int]

    @classmethod
    def count(
        cls, curation: Curation, decisions: Mapping[str, Decision], chosen: Mapping[str, Sequence[str]]
    ) -> Funnel:
        """Counts the rows of a curation whose decisions are complete."""
        stages = [stage.name for stage in curation.stages if stage.labels_rows]
        counts: dict[str, Counter[str]] = {}
        reasons: Counter[tuple[str, str]] = Counter()
        sets = {row_id: name for name, ids in chosen.items() for row_id in ids}
        for row_id, decision in decisions.items():
            source = curation.store.document(row_id)["source"]
            dropped_at = stages.index(decision.stage) if decision.destination == DROPPED else len(stages)
            columns = ["read", *stages[:dropped_at], *([sets[row_id]] if row_id in sets else [])]
            for name in (source, "all"):
                counts.setdefault(name, Counter()).update(columns)
            if decision.destination == DROPPED:
                reasons[decision.stage, _general(decision.reason)] += 1
        ordered = {name: counts[name] for name in sorted(counts, key=lambda name: (name == "all", name))}
        return cls(("read", *stages, RL, COLD_START), ordered, dict(reasons.most_common()))


def _general(reason: str) -> str:
    """Returns a reason without what differs between rows: the id of another row, and counts above 99."""
    return re.sub(r"( of) \S*[/:]\S*$", r"\1 another row", reason)
