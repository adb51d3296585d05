"""The stage verify: stored trajectories are executed again, and their outputs compared.

Released sets contain outputs that no tool wrote (Metis, arXiv 2604.08545): a row whose stored observation differs from
that of the execution teaches the model to invent outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import CurateConfig
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.decisions import COLD_START, DROPPED, Decision
from dv2_jax.curation.image_overlap import STRONG_BITS, decode_gray, hamming, perceptual_hash
from dv2_jax.curation.models import open_replay
from dv2_jax.curation.stage import CurationStage, register_stage
from dv2_jax.rollout.scheduler import RolloutRequest

_VARYING = (
    (re.compile(r"0x[0-9a-fA-F]{6,}"), "0x…"),  # addresses in the text of objects
    (re.compile(r"\d+(\.\d+)?( ?)(ms|µs|us|seconds|s)\b"), "…\\2\\3"),  # durations
)


@register_stage
class Verify(CurationStage):
    """Executes the calls of every kept trajectory again and compares texts and images of their observations."""

    name = "verify"

    def applies(self, before: Decision) -> bool:
        return before.destination == COLD_START

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        return before if entries[0]["kept"] else Decision(DROPPED, self.name, entries[0]["reason"])

    def run(self, curation: Curation) -> None:
        waiting = curation.unlabeled_ids(self.name)
        if not waiting:
            return
        turns = {row_id: curation.journal("synthesize").entries[row_id, 0]["turns"] for row_id in waiting}
        journal = curation.journal(self.name)
        with (
            open_replay(curation, {row_id: texts(stored) for row_id, stored in turns.items()}) as scheduler,
            curation.display.track(self.name, len(waiting), unit="trajectories") as bar,
        ):
            requests = (RolloutRequest(curation.store.row(row_id).question, row_id, 0) for row_id in waiting)
            with closing(scheduler.stream(requests)) as finished:
                for _, trajectory in finished:
                    reason = difference(turns[trajectory.id], trajectory, curation.read_image)
                    journal.add(trajectory.id, {"kept": not reason, "reason": reason})
                    bar.advance()


def texts(turns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the assistant's texts of stored turns."""
    return [turn["text"] for turn in turns]


def difference(stored: Sequence[Mapping[str, Any]], replayed: Trajectory, read_image: Callable[[str], bytes]) -> str:
    """Returns the first difference between stored turns and their execution; empty where they agree.

    Memory addresses and durations in texts are ignored; images agree if they are equal or their perceptual hashes are near.
    """
    if replayed.dropped:
        return "the tools service lost the replay"
    if len(replayed.turns) != len(stored):
        return f"{len(stored)} turns are stored, but the replay has {len(replayed.turns)}"
    for number, (old, new) in enumerate(zip(stored, replayed.turns, strict=True), start=1):
        if number == len(stored):
            break  # the answer has no observation
        if normalize_output(old["observation"] or "") != normalize_output(new.observation or ""):
            return f"turn {number}: the stored output differs from that of the execution"
        if len(old["images"]) != len(new.images):
            return f"turn {number}: {len(old['images'])} images are stored, the execution returned {len(new.images)}"
        for name, image in zip(old["images"], new.images, strict=True):
            if not same_image(read_image(name), image):
                return f"turn {number}: a stored image differs from that of the execution"
    return ""


def normalize_output(text: str) -> str:
    """Returns an output without what differs between two executions: addresses and durations."""
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def same_image(first: bytes, second: bytes) -> bool:
    """Returns whether two encoded images show the same."""
    if first == second:
        return True
    return hamming(perceptual_hash(decode_gray(first)), perceptual_hash(decode_gray(second))) <= STRONG_BITS
