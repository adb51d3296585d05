"""The text search tool: a query to the search service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dv2_jax.agent.tools.base import (
    Observation,
    ParsedTurn,
    RenderContext,
    RequestContext,
    ToolOutput,
    malformed,
    tool_response,
)
from dv2_jax.agent.tools.google_results import render_results, shown_items
from dv2_jax.agent.tools.json_call import JsonCallTool, text_problem
from dv2_jax.agent.tools.tool_registry import register_tool

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tools_service.client import TextSearchRequest


@register_tool
class SearchTool(JsonCallTool):
    """Searches for `{"query": "..."}`; returns titles, addresses, dates and snippets in Google's layout."""

    name = "search"
    title = "text search"
    manual = """\
## Text search

`search` finds web pages for the text `query` (a string). Write one JSON object between the tags, like this:
<tool_call>
{"name": "search", "arguments": {"query": "year the Pont du Gard was built"}}
</tool_call>

You may search many times, with one query per turn. Compare sources, and prefer reliable and recent ones."""
    verb = "searches"
    is_search = True

    def parse_arguments(self, arguments: Any, raw: str) -> ParsedTurn:
        query = arguments.get("query") if isinstance(arguments, dict) else None
        if query is None:
            return malformed("Error: 'query'", includes_row_id=True)
        if not isinstance(query, str) or not query.strip():
            return malformed("Error: 'query' must be a string that is not empty", includes_row_id=True)
        if problem := text_problem(query):
            return malformed(f"Error: 'query' {problem}", includes_row_id=True)
        return ParsedTurn(self.name, query)

    def request(self, turn: ParsedTurn, context: RequestContext) -> TextSearchRequest:
        from tools_service.client import TextSearchRequest

        return TextSearchRequest(context.request_id, turn.payload, context.agent.search_results)

    def render_success(self, turn: ParsedTurn, result: ToolOutput, context: RenderContext) -> Observation:
        entries = []
        for number, item in enumerate(shown_items(result, context), start=1):
            date = f"\nDate published: {item.date}" if item.date else ""
            snippet = f"\n{item.snippet}" if item.snippet else ""
            entry = f"{number}. [{item.title}]({item.url}){date}\n{snippet}"
            entries.append(entry.replace("Your browser can't play this video.", ""))
        return tool_response(context.escape(render_results(f"search for '{turn.payload}'", entries)))

    def display(self, payload: str) -> RenderableType:
        from rich.text import Text

        return Text.assemble("  ", ("search", "cyan"), " ", payload)
