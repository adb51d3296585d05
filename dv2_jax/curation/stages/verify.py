"""The stage verify: stored trajectories are executed again, and their outputs compared.

Released sets contain outputs that no tool wrote (Metis, arXiv 2604.08545): a row whose stored observation differs from
that of the execution teaches the model to invent outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from typing import Any

from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import CurateConfig
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.curation_rows import RowForm
from dv2_jax.curation.decisions import COLD_START, DROPPED, Decision
from dv2_jax.curation.image_overlap import STRONG_BITS, decode_gray, hamming, perceptual_hash
from dv2_jax.curation.models import open_replay
from dv2_jax.curation.stage import CurationStage, register_stage
from dv2_jax.curation.stages.solve_rates import failed_calls
from dv2_jax.curation.text_checks import long_cot_fault, text_fault
from dv2_jax.rollout.scheduler import RolloutRequest
from dv2_jax.telemetry.progress import ProgressTask

CHUNK = 1_000  # trajectories whose stored turns are in memory at a time

_VARYING = (
    (re.compile(r"0x[0-9a-fA-F]{6,}"), "0x…"),  # addresses in the text of objects
    (re.compile(r"\d+(\.\d+)?( ?)(ms|µs|us|seconds|s)\b"), "…\\2\\3"),  # durations
)


@register_stage
class Verify(CurationStage):
    """Executes the calls of every kept trajectory again and compares texts and images of their observations.

    The text of every trajectory is checked first. Search results that were read with a row cannot be compared, because what
    a search engine returns changes; their number is a label.
    """

    name = "verify"

    def applies(self, before: Decision, form: RowForm) -> bool:
        return before.destination == COLD_START

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        return before if entries[0]["kept"] else Decision(DROPPED, self.name, entries[0]["reason"])

    def run(self, curation: Curation) -> None:
        waiting = curation.unlabeled_ids(self.name)
        if not waiting:
            return
        with curation.display.track(self.name, len(waiting), unit="trajectories") as bar:
            to_execute = []
            for row_id in waiting:
                turns = curation.turns(row_id)
                fault = self._text_fault(curation, row_id, turns)
                if fault or not any(turn["observation"] is not None for turn in turns[:-1]):
                    curation.journal(self.name).add(row_id, _labels(fault))
                    bar.advance()
                else:
                    to_execute.append(row_id)
            for start in range(0, len(to_execute), CHUNK):
                self._execute(curation, to_execute[start : start + CHUNK], bar)

    def _text_fault(self, curation: Curation, row_id: str, turns: Sequence[Mapping[str, Any]]) -> str:
        tools = run_tools(curation.config.agent)
        if curation.store.form(row_id) == "long_cot":
            return long_cot_fault(turns[-1]["text"], tools) if turns else "there is no turn"
        return text_fault(texts(turns), tools)

    def _execute(self, curation: Curation, ids: Sequence[str], bar: ProgressTask) -> None:
        stored = {row_id: curation.turns(row_id) for row_id in ids}
        searches = {tool.name for tool in run_tools(curation.config.agent) if tool.is_search}
        with open_replay(curation, {row_id: texts(turns) for row_id, turns in stored.items()}) as scheduler:
            requests = (RolloutRequest(curation.store.row(row_id).question, row_id, 0) for row_id in ids)
            with closing(scheduler.stream(requests)) as finished:
                for _, trajectory in finished:
                    was_read = curation.store.form(trajectory.id) == "trajectory"
                    turns, not_compared = stored[trajectory.id], searches if was_read else set()
                    reason = difference(turns, trajectory, curation.read_image, not_compared)
                    if not reason and (failed := failed_calls(trajectory)):
                        reason = f"{failed} failed calls"
                    unchecked = sum(turn["kind"] in not_compared for turn in turns[:-1])
                    curation.journal(self.name).add(trajectory.id, _labels(reason, unchecked))
                    bar.advance()


def _labels(reason: str, unchecked: int = 0) -> dict[str, Any]:
    return {"kept": not reason, "reason": reason, "unchecked_searches": unchecked}


def texts(turns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the assistant's texts of stored turns."""
    return [turn["text"] for turn in turns]


def difference(
    stored: Sequence[Mapping[str, Any]],
    replayed: Trajectory,
    read_image: Callable[[str], bytes],
    not_compared: Collection[str] = (),
) -> str:
    """Returns the first difference between stored turns and their execution; empty where they agree.

    Memory addresses and durations in texts are ignored; images agree if they are equal or their perceptual hashes are near.
    The outputs of the tools `not_compared` are left out.
    """
    if replayed.dropped:
        return "the tools service lost the replay"
    if len(replayed.turns) != len(stored):
        return f"{len(stored)} turns are stored, but the replay has {len(replayed.turns)}"
    for number, (old, new) in enumerate(zip(stored[:-1], replayed.turns), start=1):  # the answer has no observation
        if old["kind"] in not_compared:
            continue
        if normalize_output(old["observation"] or "") != normalize_output(new.observation or ""):
            return f"turn {number}: the stored output differs from that of the execution"
        if len(old["images"]) != len(new.images):
            count = f"{len(old['images'])} images are stored, the execution returned {len(new.images)}"
            return f"turn {number}: {count}"
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
