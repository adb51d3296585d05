"""Provenance of a row: where it came from, all its labels, and where it went."""

from __future__ import annotations

from typing import Any

from dv2_jax.curation.curation import Curation
from dv2_jax.curation.decisions import Decision, Solved


def provenance(curation: Curation, row_id: str, decision: Decision, chosen: str | None) -> dict[str, Any]:
    """Returns the provenance of a row in JSON types.

    Args:
        chosen: the set that contains the row; None: none, also for a kept row that the mixture left out.
    """
    line = curation.store.document(row_id)
    entries = curation.entries(row_id)
    sampled = {
        name: [entry for entry in entries.get(name, ()) if "correct" in entry]
        for name in ("difficulty", "benefit", "withheld")
    }
    solved = {name: Solved.count(samples) for name, samples in sampled.items() if samples}
    trajectory = (entries.get("synthesize") or [None])[0]
    overlap = (entries.get("deduplicate") or [None])[0]
    found = {
        "id": row_id,
        "source": line["source"],
        "license": line["license"],
        "form": curation.store.form(row_id),
        "digest": line["digest"],
        "images": line["images"],
        "set": chosen,
        "decision": decision.destination,
        "stage": decision.stage,
        "reason": decision.reason,
        "without_tools": _counts(solved.get("difficulty")),
        "with_tools": _counts(solved.get("benefit")),
        "output_withheld": _counts(solved.get("withheld")),
        "gain": None,
        "pairs": [] if overlap is None else overlap["pairs"],
    }
    if "difficulty" in solved and "benefit" in solved:
        before, after = solved["difficulty"].rate, solved["benefit"].rate
        found |= {"gain": round(max(0.0, after - before), 4), "harm": round(max(0.0, before - after), 4)}
    if trajectory is not None:
        keys = ("model", "attempt", "prompt_tokens", "completion_tokens", "requests", "cost", "failed_calls", "hinted")
        found["teacher"] = {key: trajectory.get(key) for key in keys}
    if entries.get("review"):
        review = entries["review"][0]
        found["review"] = {key: review[key] for key in ("model", "denied", "reason", "failure")}
    if entries.get("verify"):
        found["unchecked_searches"] = entries["verify"][0].get("unchecked_searches", 0)
    return found


def _counts(solved: Solved | None) -> dict[str, int] | None:
    return None if solved is None else {"correct": solved.correct, "n": solved.n, "failed": solved.failed}
