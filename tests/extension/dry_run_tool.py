"""A fourth tool in one file that a policy trained on code calls at once: it takes the cells that crop an image."""

from __future__ import annotations

import re

from dv2_jax.agent.tools.base import LocalCall, LocalOutput, ParsedTurn, RequestContext, Tool

_CELL = re.compile(r"<code>\s*```python\n(.*?)\n```\s*</code>", re.DOTALL)


class DryRunTool(Tool):
    """Describes a cell with `.crop(` instead of running it. Named before `code`, it is asked first."""

    name = "dry_run"
    tag = "code"
    verb = "describes a cell"

    def parse(self, text: str) -> ParsedTurn | None:
        cells = [cell for cell in _CELL.findall(text) if ".crop(" in cell]
        return ParsedTurn(self.name, cells[-1]) if cells else None

    def request(self, turn: ParsedTurn, context: RequestContext) -> LocalCall:
        lines = len(turn.payload.splitlines())
        return LocalCall(context.request_id, self.name, lambda: LocalOutput(f"{lines} lines, not run"))
