"""Renders a tool's output as the observation that the policy reads; the layouts are those of `agent.tools`.

Special tokens in tool output are escaped (`data.chat_encoder.escape_special_tokens`), so every `<image>` marker in
an observation was written by a tool's class and has one image.
"""

from __future__ import annotations

from dv2_jax.agent.tools.base import Observation, ParsedTurn, RenderContext, ToolOutput
from dv2_jax.agent.tools.tool_registry import protocol_tags, run_tools
from dv2_jax.config import AgentConfig

__all__ = ["Observation", "ToolOutput", "render_observation"]


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
        config: tools of the run, and limits on characters, images and search results.
        images_left: images that the trajectory may still take (default: only the limit per turn applies).
        dataset_index: the index of a released dataset row. The released code ends the text of a failed search
            with " for {index}"; empty for other data.

    Raises:
        ValueError: for an infrastructure failure, which must be retried and never be shown to the policy.
    """
    tools = run_tools(config)
    max_images = config.max_images_per_turn
    if images_left is not None:
        max_images = max(0, min(max_images, images_left))
    row_suffix = f" for {dataset_index}" if dataset_index else ""
    context = RenderContext(config, max_images, protocol_tags(tools), row_suffix)
    if turn.kind in ("malformed", "none"):
        suffix = row_suffix if turn.error_includes_row_id else ""
        return Observation(context.escape(turn.error) + suffix)
    tool = next((tool for tool in tools if tool.name == turn.kind), None)
    if tool is None or result is None:
        raise ValueError(f"a turn of kind {turn.kind!r} with result {result!r} has no observation")
    if result.status.is_infrastructure_failure:
        raise ValueError(
            f"{result.status.name} is a failure of the infrastructure ({result.message!r}): retry, do not render"
        )
    return tool.render(turn, result, context)
