"""Converts trajectories between turns, journal entries and the messages of the released SFT format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dv2_jax.agent.trajectory import TurnRecord
from tools_service.common.status import Status


def turns_to_json(turns: Sequence[TurnRecord], store_image: Callable[[bytes], str]) -> list[dict[str, Any]]:
    """Converts turns to JSON types; `store_image` stores an image and returns its file name."""
    return [
        {
            "text": turn.text,
            "kind": turn.kind,
            "observation": turn.observation,
            "images": [store_image(image) for image in turn.images],
            "status": "" if turn.status is None else turn.status.value,
        }
        for turn in turns
    ]


def turns_from_json(turns: Sequence[Mapping[str, Any]], read_image: Callable[[str], bytes]) -> tuple[TurnRecord, ...]:
    """Converts what `turns_to_json` has returned; `read_image` reads an image by its file name."""
    return tuple(
        TurnRecord(
            turn["text"],
            turn["kind"],
            turn["observation"],
            tuple(map(read_image, turn["images"])),
            Status(turn["status"]) if turn["status"] else None,
        )
        for turn in turns
    )


def sft_messages(prompt: Sequence[Mapping[str, str]], turns: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the conversation of a trajectory: prompt, assistant turns, and observations as user messages, as released.

    Args:
        prompt: system and user message, with one `<image>` per image of the question.
        turns: as `turns_to_json` returns them; the last one answers and has no observation.
    """
    messages = [dict(message) for message in prompt]
    for index, turn in enumerate(turns):
        text = turn["text"] if turn["text"].startswith("<think>") else "<think>" + turn["text"]
        messages.append({"role": "assistant", "content": text})
        if index < len(turns) - 1:
            messages.append({"role": "user", "content": turn["observation"]})
    return messages
