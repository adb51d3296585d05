"""Rows of the released cold-start files: `messages` (prompt, then turns and observations) and `images`.

`images` may be null or absent in rows without images. The messages are kept as they are; the stage verify executes the
stored calls again, and the stage mix writes the row unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dv2_jax.agent.parser import parse_turn
from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import default_tools
from dv2_jax.agent.trajectory import TurnRecord
from dv2_jax.curation.source_form import SourceForm, SourceRow, register_form
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.data.question import DataSource, Question
from dv2_jax.data.row_fields import RowReader, default_verifier, parse_conversation
from dv2_jax.rewards.rules import final_answer


@register_form
class ReleasedSFT(SourceForm):
    """A stored trajectory. Its reference answer is its own final answer, empty where it has none."""

    name = "released_sft"

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return "messages" in row and "prompt" not in row

    def parse(self, row: Mapping[str, Any], id_: str, reader: RowReader) -> SourceRow | None:
        conversation = parse_conversation(row, id_, reader)
        if conversation is None:
            return None
        messages, images = conversation.messages, conversation.images
        markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
        if markers != len(images):
            fix = f"write one {IMAGE_MARKER} where each image belongs, and list every image in `images`"
            reader.add("markers", "messages", f"{markers} {IMAGE_MARKER} markers for {len(images)} images", fix)
            return None
        first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
        prompt = messages[:first]
        shown = sum(message["content"].count(IMAGE_MARKER) for message in prompt)
        tools = default_tools()
        turns = tuple(_turns(messages[first:], images[shown:], tools))
        source = _data_source(turns, images, tools)
        answer = final_answer(turns[-1].text) or ""
        question = Question(
            id=id_,
            skill=source,
            data_source=source,
            text=prompt[-1]["content"].replace(IMAGE_MARKER, "").strip(),
            images=images[:shown],
            answer=answer,
            verifier=default_verifier(source, answer),
            messages=prompt,
        )
        return SourceRow(question, messages, turns)


def _turns(messages: Sequence[dict], images: tuple[bytes, ...], tools: Sequence[Tool]) -> list[TurnRecord]:
    """Converts alternating assistant and user messages to turns; `images` are those of the observations, in order."""
    turns, used = [], 0
    for index in range(0, len(messages), 2):
        text = messages[index]["content"]
        observation = messages[index + 1]["content"] if index + 1 < len(messages) else None
        count = 0 if observation is None else observation.count(IMAGE_MARKER)
        shown = images[used : used + count]
        used += count
        turns.append(TurnRecord(text, parse_turn(text, tools).kind, observation, shown))
    return turns


def _data_source(turns: Sequence[TurnRecord], images: Sequence[bytes], tools: Sequence[Tool]) -> DataSource:
    """Returns the data source by what a trajectory does, since released cold-start rows do not name one."""
    searches = {tool.name for tool in tools if tool.is_search}
    if any(turn.kind in searches for turn in turns):
        return "search"
    return "perception" if images else "reason"
