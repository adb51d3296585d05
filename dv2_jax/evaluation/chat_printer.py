"""Prints a trajectory on a terminal, turn by turn: thought, code, observation, answer."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from dv2_jax.agent.parser import parse_turn
from dv2_jax.agent.tools.base import Tool, plain_output
from dv2_jax.agent.tools.tool_registry import default_tools
from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord

_THOUGHT = re.compile(r"^(?:\s*<think>)?(.*?)</think>", re.DOTALL)
_ENDINGS = {
    Finish.MAX_TURNS: "no turns are left",
    Finish.MAX_TOKENS: "no room is left for more text",
    Finish.TURN_LIMIT: "the last turn reached its length limit",
    Finish.LOST: "the tools service did not answer",
}

# Control characters in text of a policy or a web page must not control the terminal: symbols are printed instead.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")


class ChatPrinter:
    """Prints turns as they finish; saves returned images to `folder` and prints their paths.

    `tools` are those of the run, by default DeepEyesV2's.
    """

    def __init__(self, console: Console, folder: Path, tools: Sequence[Tool] | None = None):
        self.console = console
        self.folder = folder
        self.tools = default_tools() if tools is None else tuple(tools)

    def turn(self, record: TurnRecord) -> None:
        """Prints one generated turn and its observation."""
        text = record.text.translate(_VISIBLE)
        thought = _THOUGHT.match(text)
        if thought and thought.group(1).strip():
            self.console.print(Text(thought.group(1).strip(), style="italic dim"))
        turn = parse_turn(text, self.tools)
        tool = self._tool(turn.kind)
        if turn.kind == "answer":
            self.console.print(Text(turn.payload, style="bold green"))
        elif tool is not None:
            self.console.print(tool.display(turn.payload))
        else:
            self.console.print(Text(text[thought.end() :] if thought else text, style="red"))
        if record.observation is not None:
            self._observation(record)

    def end(self, trajectory: Trajectory) -> None:
        """Prints the reason if the trajectory ended without an answer."""
        if trajectory.row_error:
            reason = escape(trajectory.row_error.translate(_VISIBLE))
            self.console.print(f"[yellow]No answer: the question cannot be used: {reason}.[/]")
        elif trajectory.finish in _ENDINGS:
            self.console.print(f"[yellow]No answer: {_ENDINGS[trajectory.finish]}.[/]")

    def _observation(self, record: TurnRecord) -> None:
        took = f"{record.wall_ms:.0f} ms" if record.wall_ms else ""
        observation = record.observation.translate(_VISIBLE)
        tool = self._tool(record.kind)
        for text, is_error in plain_output(observation) if tool is None else tool.output_parts(observation):
            self._indented(text, "red" if is_error else "")
        for data in record.images:
            with Image.open(io.BytesIO(data)) as image:
                size = f"{image.width} × {image.height}"
            self.console.print(f"    [cyan]image[/] {size}: {escape(str(self._save(data)))}")
        if took:
            self.console.print(f"    [dim]{took}[/]")

    def _tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)

    def _indented(self, text: str, style: str = "") -> None:
        self.console.print(Padding(Text(text, style=style), (0, 0, 0, 4), expand=False))

    def _save(self, data: bytes) -> Path:
        """Saves an image under the next free number, so that images of earlier chats are kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem) for path in self.folder.glob("*.png") if path.stem.isdigit()]
        path = self.folder / f"{max(numbers, default=0) + 1:04d}.png"
        with Image.open(io.BytesIO(data)) as image:
            image.save(path, "PNG")
        return path
