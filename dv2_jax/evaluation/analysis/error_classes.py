"""Classifies wrong answers by rules that use the record alone: an attempt at the paper's error types (appendix A.7).

The paper names three types (tool execution, tool selection, analysis of tool results) and publishes neither rules nor
shares. The rules here are stated in `CLASSES` and are tried in that order; the first that applies counts, so that the
classes add up to the number of wrong answers. A record does not contain the region of the image that answers the
question, nor whether the reference is right: what rules cannot see, each class says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dv2_jax.agent.tools.image_search import ImageSearchTool
from dv2_jax.agent.tools.tool_registry import find_tool

HUMAN = "human"
SHORT = 3  # characters: a shorter reference occurs by chance in results of a search
SHORT_OUTPUT = 200  # characters: in an output up to this length, a short reference counts as found

EXECUTION, SELECTION, ANALYSIS, OTHER = "tool execution", "tool selection", "tool-result analysis", "other"


@dataclass(frozen=True)
class ErrorClass:
    """A class of errors: its rule, and what the rule cannot see."""

    name: str
    group: str
    title: str
    rule: str
    limits: str = ""


CLASSES: dict[str, ErrorClass] = {
    known.name: known
    for known in (
        ErrorClass(
            "limit",
            OTHER,
            "limit reached",
            "The answer ended by a limit of tokens, or by the limit of turns after a valid call.",
            "The reason for its length.",
        ),
        ErrorClass(
            "format",
            OTHER,
            "format",
            "The last turn is neither an answer nor a valid call.",
            "The answer may be right except for its form.",
        ),
        ErrorClass(
            "no_call",
            OTHER,
            "no call",
            "No tool was called.",
            "Whether a tool would have helped: compare with a run without tools.",
        ),
        ErrorClass(
            "result_ignored",
            ANALYSIS,
            "result contains the reference",
            f"An output of a tool contains the reference answer as text ({SHORT} characters or more, or an output of at most"
            f" {SHORT_OUTPUT}); the answer differs.",
            "The reference may occur there by chance.",
        ),
        ErrorClass(
            "raised",
            EXECUTION,
            "call failed",
            "The last call of a tool failed: the code raised, timed out or crashed, or the request was refused.",
        ),
        ErrorClass(
            "blank_crop",
            EXECUTION,
            "wrong crop region",
            "Every image that crops returned has one color only, as outside of the image.",
            "A crop that shows something, but not what was asked for.",
        ),
        ErrorClass(
            "text_for_image",
            SELECTION,
            "text instead of image search",
            "The question has an image; only text was searched although the policy could search by image; no result"
            " contains the reference.",
            "Whether an image search finds more.",
        ),
        ErrorClass(
            "not_found",
            EXECUTION,
            "search without the reference",
            "Only searches were called, and no result contains the reference.",
            "Wrong keywords, a reference that results phrase otherwise, or an index without it.",
        ),
        ErrorClass(
            "misread",
            ANALYSIS,
            "tools fine, answer wrong",
            "No search was called, no call failed, and the answer is wrong.",
            "A crop of the wrong region that shows something, a wrong computation, or a wrong reference.",
        ),
        ErrorClass(
            HUMAN,
            OTHER,
            "left to a person",
            "No other rule applies, for example code and searches that all worked.",
            "All of it: name the class in error_labels.csv.",
        ),
    )
}


def error_class(record: Mapping[str, Any], images: Path) -> str:
    """Returns the name of the class of a wrong answer.

    Args:
        images: folder of the images of the records.
    """
    turns: Sequence[Mapping[str, Any]] = record["turns"]
    calls = [turn for turn in turns if turn["status"]]
    last = turns[-1]["kind"] if turns else "none"
    if record.get("finish") in ("max_tokens", "turn_limit"):
        return "limit"
    if last in ("malformed", "none"):
        return "format"
    if last != "answer":
        return "limit"
    if not calls:
        return "no_call"
    references = record["question"].get("references") or record["question"]["answer"].split(" or ")
    if any(_contains(output_text(turn), reference) for turn in calls for reference in references):
        return "result_ignored"
    if _last_call_failed(calls):
        return "raised"
    if _only_blank_crops(calls, images):
        return "blank_crop"
    searches = [turn for turn in calls if _is_search(turn)]
    if not searches:
        return "misread"
    if len(searches) < len(calls):
        return HUMAN
    searched_image = any(turn["kind"] == ImageSearchTool.name for turn in searches)
    if not searched_image and record["question"]["pictures"] and _could_search_image(record):
        return "text_for_image"
    return "not_found"


def _is_search(turn: Mapping[str, Any]) -> bool:
    tool = find_tool(turn["kind"])
    return tool is not None and tool.is_search


def _could_search_image(record: Mapping[str, Any]) -> bool:
    """Returns True if the policy had the image search; records without a list of tools had the default ones."""
    tools = (record.get("answer") or {}).get("tools")
    return tools is None or ImageSearchTool.name in tools


def _last_call_failed(calls: Sequence[Mapping[str, Any]]) -> bool:
    """Returns True if the last call of some tool failed; an earlier failure from which the policy recovered is none."""
    return any(status != "ok" for status in {turn["kind"]: turn["status"] for turn in calls}.values())


def _only_blank_crops(calls: Sequence[Mapping[str, Any]], images: Path) -> bool:
    names = [name for turn in calls if _kind(turn) == "crop" for name in turn["pictures"]]
    return bool(names) and all(_is_blank(images / name) for name in names)


def _kind(turn: Mapping[str, Any]) -> str:
    tool = find_tool(turn["kind"])
    return turn["kind"] if tool is None else tool.classify(turn["text"], len(turn["pictures"]))


def _is_blank(path: Path) -> bool:
    """Returns True for an image of one color; JPEG may change values by a few levels."""
    try:
        with Image.open(path) as image:
            extrema = image.convert("RGB").getextrema()
    except OSError:  # not stored
        return False
    return all(high - low <= 4 for low, high in extrema)


def output_text(turn: Mapping[str, Any]) -> str:
    """Returns what a tool wrote, without the first line of search results, which repeats the query."""
    tool, observation = find_tool(turn["kind"]), turn["observation"] or ""
    if tool is None:
        return observation
    text = "\n".join(part for part, _ in tool.output_parts(observation))
    return text.partition("\n")[2] if tool.is_search else text


def _contains(text: str, reference: str) -> bool:
    """Returns True if the text contains the reference, at borders of words."""
    words = " ".join(reference.split()).casefold().strip(".")
    if not words or (len(words) == 1 and words.isalpha()):  # the letter of an option
        return False
    if len(words) < SHORT and len(text) > SHORT_OUTPUT:
        return False
    return re.search(rf"(?<![\w.]){re.escape(words)}(?!\w|\.\d)", " ".join(text.split()).casefold()) is not None
