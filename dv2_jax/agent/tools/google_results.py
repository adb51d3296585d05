"""The layout of search results that both search tools show: a page of Google's results, as released."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.agent.tools.base import RenderContext, ToolOutput


def shown_items(result: ToolOutput, context: RenderContext) -> list:
    """Returns the first `agent.search_results` items of a search."""
    return list(result.items)[: context.config.search_results]


def render_results(search: str, entries: Sequence[str]) -> str:
    """Returns the page with one entry per item; `search` says what was searched: "image search for the image"."""
    return f"A Google {search} found {len(entries)} results:\n\n## Web Results\n" + "\n\n".join(entries)
