"""The image search tool: pages with images that resemble the question's first image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dv2_jax.agent.agent_images import fit_returned_image
from dv2_jax.agent.tools.base import (
    Observation,
    ParsedTurn,
    Refusal,
    RenderContext,
    RequestContext,
    ToolOutput,
    malformed,
    tool_response,
)
from dv2_jax.agent.tools.google_results import render_results, shown_items
from dv2_jax.agent.tools.json_call import JsonCallTool
from dv2_jax.agent.tools.tool_registry import register_tool
from dv2_jax.data.chat_encoder import IMAGE_MARKER

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tools_service.client import ImageSearchRequest


@register_tool
class ImageSearchTool(JsonCallTool):
    """Searches by the question's first image, as released; takes no arguments. Returns thumbnails and titles."""

    name = "image_search"
    verb = "searches by image"
    manual = """\
## Image search

`image_search` finds web pages with pictures like the original picture of the question, and returns their titles and small \
pictures. It takes no arguments; use it at most once. Write exactly this:
<tool_call>
{"name": "image_search"}
</tool_call>"""
    category = "search"
    is_search = True

    def parse_arguments(self, arguments: Any, raw: str) -> ParsedTurn:
        if arguments is not None:
            return malformed(f"Error: Invalid tool call parameters for image search: {raw}.")
        return ParsedTurn(self.name)

    def request(self, turn: ParsedTurn, context: RequestContext) -> ImageSearchRequest | Refusal:
        from tools_service.client import ImageSearchRequest

        if not context.question.images:
            return Refusal("the question has no picture to search with")
        return ImageSearchRequest(context.request_id, context.question.images[0], context.agent.search_results)

    def render_success(self, turn: ParsedTurn, result: ToolOutput, context: RenderContext) -> Observation:
        entries: list[str] = []
        thumbnails: list[bytes] = []
        for number, item in enumerate(shown_items(result, context), start=1):
            # An item without a usable thumbnail, or beyond the limit, still shows its title, which holds the answer.
            usable = item.thumbnail and len(thumbnails) < context.max_images
            image = fit_returned_image(item.thumbnail) if usable else None
            if image:
                thumbnails.append(image)
            entries.append(f"{number}. {IMAGE_MARKER if image else ''}\n[{context.escape(item.title)}] \n")
        return tool_response(render_results("image search for the image", entries), tuple(thumbnails))

    def display(self, payload: str) -> RenderableType:
        from rich.text import Text

        return Text.assemble("  ", ("search by image", "cyan"))
