"""What the policy reads after a tool call: byte for byte the layout of spec 2.4.

The text of tools is neutralized (`data.chat.neutral`), so every ``<image>`` in an observation is one of ours and
stands for one of its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dv2_jax.agent.agent_images import returned_picture
from dv2_jax.agent.parser import Turn
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import IMAGE_MARKER, neutral

_CODE = "Code execution result:\nstdout:\n```\n{stdout}\n```\n\nstderr:\n```\n{stderr}\n```\n\n{images}"
_SEARCH = "<tool_response>\n{body}\n</tool_response>"
_FAILED = {
    "TIMEOUT": "Execution timed out.",
    "OOM": "Execution ran out of memory.",
    "CRASHED": "The Python process died.",
    "OUTPUT_LIMIT": "The output exceeded its limit.",
}
RETRYABLE = frozenset(
    {"UNAVAILABLE", "SESSION_LOST", "CANCELLED"}
)  # the infrastructure's failures: no observation, ever


@dataclass(frozen=True)
class Observation:
    """Text with one ``<image>`` per encoded picture, in order."""

    text: str
    images: tuple[bytes, ...] = ()


class Result(Protocol):
    """What is read of a ``tools_service.client.ToolResult``."""

    status: object  # an enum member, or its name
    stdout: str
    stderr: str
    images: tuple[bytes, ...]
    items: Sequence
    message: str
    restarted: bool


def render(
    turn: Turn, result: Result | None, config: AgentConfig, *, images_left: int | None = None, row_index: str = ""
) -> Observation:
    """The observation for what ``turn`` asked and the tool answered.

    Args:
        turn: the parsed turn; ``malformed`` and ``none`` need no result.
        images_left: pictures that the trajectory may still take (default: no limit but the per-turn one).
        row_index: the index of a released row, with which the layout of a failed search ends (" for {index}").

    Raises:
        ValueError: for an infrastructure failure, which must be retried and never shown to the policy.
    """
    failed_row = f" for {row_index}" if row_index else ""
    if turn.kind in ("malformed", "none"):
        return Observation(neutral(turn.error) + failed_row * turn.names_row)
    if not turn.calls_tool or result is None:
        raise ValueError(f"a turn of kind {turn.kind!r} with result {result!r} has no observation")
    status = getattr(result.status, "name", str(result.status))
    if status in RETRYABLE:
        raise ValueError(f"{status} is a failure of the infrastructure ({result.message!r}): retry, do not render")
    limit = config.max_images_per_turn
    limit = limit if images_left is None else max(0, min(limit, images_left))
    if turn.kind != "code" and status != "OK":
        return Observation(neutral(f"Error: {result.message or status.lower()}") + failed_row)
    if status == "REFUSED":
        return Observation(neutral(f"Error: {result.message or 'refused'}"))
    if turn.kind == "code":
        return _render_code(result, status, config, limit)
    items = list(result.items)[: config.search_results]
    return _render_text_search(turn.payload, items) if turn.kind == "search" else _render_image_search(items, limit)


def clip(text: str, limit: int, stream: str) -> str:
    """``text`` within ``limit`` characters, its middle replaced by a note that says how much is missing.

    Both ends stay: the head says what the program did, the tail holds a traceback's last line.
    """
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    missing = len(text) - limit
    return f"{text[:head]}\n[... {missing} characters of {stream} left out ...]\n{text[len(text) - tail :]}"


def _render_code(result: Result, status: str, config: AgentConfig, limit: int) -> Observation:
    notes = [] if status in ("OK", "ERROR") else [result.message or _FAILED.get(status, status)]
    if result.restarted:
        notes.append("The Python session was restarted: variables are lost, the pictures are loaded again.")
    stderr = "\n".join([*filter(None, [result.stderr.rstrip("\n")]), *notes]) if notes else result.stderr
    readable = [picture for picture in map(returned_picture, result.images) if picture is not None]
    shown = tuple(readable[:limit])
    lines = ["Images:", IMAGE_MARKER * len(shown)] if shown else []
    if len(shown) < len(result.images):
        lines.append(f"[images left out: {len(result.images) - len(shown)}]")
    text = _CODE.format(
        stdout=neutral(clip(result.stdout, config.stdout_chars, "stdout")),
        stderr=neutral(clip(stderr, config.stderr_chars, "stderr")),
        images="\n".join(lines),
    )
    return Observation(text.strip(), shown)


def _render_text_search(query: str, items: Sequence) -> Observation:
    entries = []
    for number, item in enumerate(items, start=1):
        date = f"\nDate published: {item.date}" if item.date else ""
        snippet = f"\n{item.snippet}" if item.snippet else ""
        entry = f"{number}. [{item.title}]({item.url}){date}\n{snippet}"
        entries.append(entry.replace("Your browser can't play this video.", ""))
    head = f"A Google search for '{query}' found {len(items)} results:\n\n## Web Results\n"
    return Observation(_SEARCH.format(body=neutral(head + "\n\n".join(entries))))


def _render_image_search(items: Sequence, limit: int) -> Observation:
    entries, thumbnails = [], []
    for number, item in enumerate(items, start=1):
        # A thumbnail that is missing, or for which there is no room, leaves the title: that is what answers.
        picture = returned_picture(item.thumbnail) if item.thumbnail and len(thumbnails) < limit else None
        thumbnails += [picture] if picture else []
        entries.append(f"{number}. {IMAGE_MARKER if picture else ''}\n[{neutral(item.title)}] \n")
    head = f"A Google image search for the image found {len(items)} results:\n\n## Web Results\n"
    return Observation(_SEARCH.format(body=head + "\n\n".join(entries)), tuple(thumbnails))
