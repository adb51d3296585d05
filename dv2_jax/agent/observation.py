"""Renders a tool's output as the observation that the policy reads, in the released layout, byte for byte.

Special tokens in tool output are escaped (`data.chat_encoder.escape_special_tokens`), so every `<image>` marker in
an observation was written here and has one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dv2_jax.agent.agent_images import fit_returned_image
from dv2_jax.agent.parser import ParsedTurn
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import IMAGE_MARKER, escape_special_tokens

_CODE = "Code execution result:\nstdout:\n```\n{stdout}\n```\n\nstderr:\n```\n{stderr}\n```\n\n{images}"
_SEARCH = "<tool_response>\n{body}\n</tool_response>"
_FAILED = {
    "TIMEOUT": "Execution timed out.",
    "OOM": "Execution ran out of memory.",
    "CRASHED": "The Python process died.",
    "OUTPUT_LIMIT": "The output exceeded its limit.",
}
# Infrastructure failures: the request is retried, and the policy never observes them.
RETRYABLE_STATUSES = frozenset({"UNAVAILABLE", "SESSION_LOST", "CANCELLED"})


@dataclass(frozen=True)
class Observation:
    """Text with one `<image>` marker per encoded image, in order."""

    text: str
    images: tuple[bytes, ...] = ()


class ToolOutput(Protocol):
    """The fields of a `tools_service.client.ToolResult` that an observation is rendered from."""

    status: object  # an enum member, or its name
    stdout: str
    stderr: str
    images: tuple[bytes, ...]
    items: Sequence
    message: str
    restarted: bool


def render_observation(
    turn: ParsedTurn,
    result: ToolOutput | None,
    config: AgentConfig,
    *,
    images_left: int | None = None,
    dataset_index: str = "",
) -> Observation:
    """Renders the observation for a parsed turn and the tool's result.

    Args:
        turn: the parsed turn; kinds `malformed` and `none` need no result.
        result: the tool's output; None if the turn calls no tool.
        config: limits on characters, images and search results.
        images_left: images that the trajectory may still take (default: only the limit per turn applies).
        dataset_index: the index of a released dataset row. The released code ends the text of a failed search
            with " for {index}"; empty for other data.

    Raises:
        ValueError: for an infrastructure failure, which must be retried and never be shown to the policy.
    """
    row_suffix = f" for {dataset_index}" if dataset_index else ""
    if turn.kind in ("malformed", "none"):
        suffix = row_suffix if turn.error_includes_row_id else ""
        return Observation(escape_special_tokens(turn.error) + suffix)
    if not turn.calls_tool or result is None:
        raise ValueError(f"a turn of kind {turn.kind!r} with result {result!r} has no observation")
    status = getattr(result.status, "name", str(result.status))
    if status in RETRYABLE_STATUSES:
        raise ValueError(f"{status} is a failure of the infrastructure ({result.message!r}): retry, do not render")
    max_images = config.max_images_per_turn
    if images_left is not None:
        max_images = max(0, min(max_images, images_left))
    if turn.kind != "code" and status != "OK":
        return Observation(escape_special_tokens(f"Error: {result.message or status.lower()}") + row_suffix)
    if status == "REFUSED":
        return Observation(escape_special_tokens(f"Error: {result.message or 'refused'}"))
    if turn.kind == "code":
        return _render_code(result, status, config, max_images)
    items = list(result.items)[: config.search_results]
    if turn.kind == "search":
        return _render_text_search(turn.payload, items)
    return _render_image_search(items, max_images)


def truncate_middle(text: str, limit: int, stream: str) -> str:
    """Cuts `text` to `limit` characters by replacing its middle with a note that states how many are missing.

    Both ends are kept: the head shows what the program printed first, the tail the last line of a traceback.
    """
    if len(text) <= limit:
        return text
    tail = limit // 2
    head = limit - tail
    missing = len(text) - limit
    return f"{text[:head]}\n[... {missing} characters of {stream} left out ...]\n{text[len(text) - tail :]}"


def _render_code(result: ToolOutput, status: str, config: AgentConfig, max_images: int) -> Observation:
    notes = [] if status in ("OK", "ERROR") else [result.message or _FAILED.get(status, status)]
    if result.restarted:
        notes.append("The Python session was restarted: variables are lost, the pictures are loaded again.")
    stderr = "\n".join([*filter(None, [result.stderr.rstrip("\n")]), *notes]) if notes else result.stderr
    readable = [image for image in map(fit_returned_image, result.images) if image is not None]
    shown = tuple(readable[:max_images])
    lines = ["Images:", IMAGE_MARKER * len(shown)] if shown else []
    if len(shown) < len(result.images):
        lines.append(f"[images left out: {len(result.images) - len(shown)}]")
    text = _CODE.format(
        stdout=escape_special_tokens(truncate_middle(result.stdout, config.stdout_chars, "stdout")),
        stderr=escape_special_tokens(truncate_middle(stderr, config.stderr_chars, "stderr")),
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
    return Observation(_SEARCH.format(body=escape_special_tokens(head + "\n\n".join(entries))))


def _render_image_search(items: Sequence, max_images: int) -> Observation:
    entries: list[str] = []
    thumbnails: list[bytes] = []
    for number, item in enumerate(items, start=1):
        # An item without a usable thumbnail, or beyond the image limit, still shows its title, which holds the answer.
        image = fit_returned_image(item.thumbnail) if item.thumbnail and len(thumbnails) < max_images else None
        if image:
            thumbnails.append(image)
        entries.append(f"{number}. {IMAGE_MARKER if image else ''}\n[{escape_special_tokens(item.title)}] \n")
    head = f"A Google image search for the image found {len(items)} results:\n\n## Web Results\n"
    return Observation(_SEARCH.format(body=head + "\n\n".join(entries)), tuple(thumbnails))
