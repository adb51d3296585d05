"""The code tool: Python in a session of the sandbox that lasts for the trajectory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dv2_jax.agent.agent_images import fit_returned_image, sandbox_images
from dv2_jax.agent.tools.base import (
    Observation,
    ParsedTurn,
    RenderContext,
    RequestContext,
    Tool,
    ToolOutput,
    malformed,
    plain_output,
)
from dv2_jax.agent.tools.cell_kinds import CELL_TITLES, classify_cell
from dv2_jax.agent.tools.tool_registry import register_tool
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from tools_service.common.status import Status

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tools_service.client import ExecRequest

_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
_FENCE = re.compile(r"```python\s*\n(.*?)\n```", re.DOTALL)
_STREAM = re.compile(r"^(stdout|stderr):\n```\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
NO_CODE = (
    "Error: No runnable code. Between the code tags, put it in a fence that opens with ```python and closes with ```."
)
_LAYOUT = "Code execution result:\nstdout:\n```\n{stdout}\n```\n\nstderr:\n```\n{stderr}\n```\n\n{images}"
_FAILED = {
    Status.TIMEOUT: "Execution timed out.",
    Status.OOM: "Execution ran out of memory.",
    Status.CRASHED: "The Python process died.",
    Status.OUTPUT_LIMIT: "The output exceeded its limit.",
}


@register_tool
class CodeTool(Tool):
    """Runs the last fence of the last `<code>` block; returns stdout, stderr and displayed images."""

    name = tag = "code"
    manual = """\
## Python

Put code between the tags, like this:
<code>
```python
print(image_1.size)
```
</code>

It runs in a Jupyter notebook; standard output, standard error and every figure shown with `plt.show()` come back to you. \
Every picture of the question is already loaded: the i-th is the global variable `image_i`, a `PIL.Image`; the first is \
`image_1`. Use it to enlarge a region, rotate, raise the contrast or compute. Import what you use (matplotlib as well), or \
leave a `PIL.Image` as the last value to see it. Variables persist between runs. Code must end; there is a time limit, and \
nothing may be written to the disk."""
    verb = "runs code"
    uses = {str(category): title for category, title in CELL_TITLES.items()}

    def parse(self, text: str) -> ParsedTurn | None:
        if self.opening_tag not in text:
            return None
        blocks = _CODE.findall(text)
        fences = _FENCE.findall(blocks[-1]) if blocks else []
        if not fences or not fences[-1].strip():
            return malformed(NO_CODE)
        return ParsedTurn(self.name, fences[-1])

    def request(self, turn: ParsedTurn, context: RequestContext) -> ExecRequest:
        from tools_service.client import ExecRequest

        images = sandbox_images(context.question, context.agent, context.image)
        timeout_s = context.tools.cell_timeout_s
        return ExecRequest(context.request_id, context.session_id, turn.payload, timeout_s, images)

    def render(self, turn: ParsedTurn, result: ToolOutput, context: RenderContext) -> Observation:
        """Renders a result of any status but REFUSED in one layout: a failed cell may have printed."""
        if result.status is Status.REFUSED:
            return Observation(context.escape(f"Error: {result.message or result.status.value}"))
        config = context.config
        stderr = _stderr(result)
        readable = [image for image in map(fit_returned_image, result.images) if image is not None]
        shown = tuple(readable[: context.max_images])
        lines = ["Images:", IMAGE_MARKER * len(shown)] if shown else []
        if len(shown) < len(result.images):
            lines.append(f"[images left out: {len(result.images) - len(shown)}]")
        text = _LAYOUT.format(
            stdout=context.escape(truncate_middle(result.stdout, config.stdout_chars, "stdout")),
            stderr=context.escape(truncate_middle(stderr, config.stderr_chars, "stderr")),
            images="\n".join(lines),
        )
        return Observation(text.strip(), shown)

    def classify(self, text: str, num_images: int) -> str:
        turn = self.parse(text)
        return classify_cell(turn.payload if turn is not None else "", num_images)

    def display(self, payload: str) -> RenderableType:
        from rich.padding import Padding
        from rich.syntax import Syntax

        return Padding(Syntax(payload, "python", background_color="default"), (0, 0, 0, 2))

    def output_parts(self, observation: str) -> list[tuple[str, bool]]:
        streams = _STREAM.findall(observation)
        if not streams:
            return plain_output(observation, self.output_tags)
        return [(text.rstrip(), name == "stderr") for name, text in streams if text.strip()]


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


def _stderr(result: ToolOutput) -> str:
    """Returns stderr, followed by notes on a cell that was stopped and on a session that was restarted."""
    notes = []
    if result.status not in (Status.OK, Status.ERROR):
        notes.append(result.message or _FAILED.get(result.status, result.status.name))
    if result.restarted:
        notes.append("The Python session was restarted: variables are lost, the pictures are loaded again.")
    return "\n".join([*filter(None, [result.stderr.rstrip("\n")]), *notes]) if notes else result.stderr
