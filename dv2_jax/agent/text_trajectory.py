"""Builds a trajectory of a model that is reached as a chat: turns are text, and observations are messages of the user.

The counterpart of `agent.trajectory_builder` without token ids. The model writes the protocol's tags as text; its endpoint
stops at the closing tag of a call and, by the rules of the API, leaves the tag out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dv2_jax.agent import budget
from dv2_jax.agent.observation import Observation, ToolOutput, render_observation
from dv2_jax.agent.parser import ParsedTurn, parse_turn
from dv2_jax.agent.prompts import build_messages
from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.agent.trajectory import Finish, Trajectory, TurnRecord
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.data.question import Question
from dv2_jax.endpoint.chat_messages import chat_content


def complete_turn(text: str, tools: Sequence[Tool], stopped_at: str | None = "") -> str:
    """Returns a turn as the protocol has it: it ends with the first closing tag of a call.

    Text after that tag is cut off: a model that was not stopped there invents the observation. A closing tag that the
    endpoint has left out is added.

    Args:
        stopped_at: the stop string that ended the turn; None: the model ended it by itself; empty: unknown, then the tag
            that was opened last is closed.
    """
    ends = [text.index(tool.stop_string) + len(tool.stop_string) for tool in tools if tool.stop_string in text]
    if ends:
        return text[: min(ends)]
    stops = {tool.stop_string: text.rfind(tool.opening_tag) for tool in tools}
    if stopped_at != "":
        return text + stopped_at if stopped_at in stops else text
    last = max(stops, key=lambda stop: stops[stop], default="")
    return text + last if last and stops[last] >= 0 else text


class TextTrajectory:
    """Accumulates one trajectory as chat messages, from its prompt to its finish.

    `append_turn` returns the parsed turn. While `finish` is None, the caller runs the turn's tool and calls
    `append_tool_output`; then `messages` is the next request.

    Raises:
        ValueError, OSError: the question's text and images do not fit, or an image cannot be decoded.
    """

    def __init__(self, question: Question, config: AgentConfig, trajectory_id: str | None = None):
        self.config = config
        self.tools = run_tools(config)
        self.messages: list[dict[str, Any]] = prompt_messages(question, config, self.tools)
        self.prompt_length = len(self.messages)
        self._images = len(question.images)  # in the messages so far
        self._turn: ParsedTurn | None = None  # the turn that awaits its observation
        self._trajectory = Trajectory(trajectory_id or question.id, question, tools=self.tools)

    @property
    def finish(self) -> Finish | None:
        return self._trajectory.finish

    @property
    def stop_strings(self) -> list[str]:
        """The closing tags at which the endpoint is asked to stop."""
        return list(dict.fromkeys(tool.stop_string for tool in self.tools))

    def append_turn(self, text: str, stopped_at: str | None = "") -> ParsedTurn:
        """Appends a reply and returns its parsed turn; `stopped_at` as in `complete_turn`."""
        if self.finish is not None or self._turn is not None:
            raise RuntimeError(f"trajectory {self._trajectory.id!r} expects no turn now")
        text = complete_turn(text, self.tools, stopped_at)
        turn = parse_turn(text, self.tools)
        self._trajectory.turns.append(TurnRecord(text, turn.kind))
        self.messages.append({"role": "assistant", "content": text})
        if turn.kind == "answer":
            self._trajectory.finish = Finish.ANSWER
        elif not text.strip():
            self._trajectory.finish = Finish.TURN_LIMIT
        elif not budget.may_continue(self.config, len(self._trajectory.turns)):
            self._trajectory.finish = Finish.MAX_TURNS
        else:
            self._turn = turn
        return turn

    def append_tool_output(self, result: ToolOutput | None, *, wall_ms: float = 0.0) -> Observation:
        """Renders and appends the observation for the last turn; `result` is None if that turn calls no tool."""
        if self._turn is None:
            raise RuntimeError(f"trajectory {self._trajectory.id!r} expects no observation now")
        observation = render_observation(
            self._turn,
            result,
            self.config,
            images_left=budget.images_left(self.config, self._images),
            dataset_index=str(self._trajectory.question.meta.get("index", "")),
        )
        turn, status = self._trajectory.turns[-1], result.status if result is not None else None
        self._trajectory.turns[-1] = TurnRecord(
            turn.text, turn.kind, observation.text, observation.images, status, wall_ms
        )
        content = chat_content(observation.text, observation.images, IMAGE_MARKER)
        self.messages.append({"role": "user", "content": content})
        self._images += len(observation.images)
        self._turn = None
        return observation

    def mark_lost(self) -> None:
        """Ends a trajectory after a failure of the infrastructure."""
        self._turn = None
        self._trajectory.finish = Finish.LOST
        self._trajectory.dropped = True

    def trajectory(self) -> Trajectory:
        """Returns the trajectory in its current state, without a copy. It has no token ids."""
        return self._trajectory


def prompt_messages(question: Question, config: AgentConfig, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Returns the prompt as chat messages with images; without tools it is the question alone."""
    if not tools:
        text = question.text
        if IMAGE_MARKER not in text:
            text = IMAGE_MARKER * len(question.images) + text
        return [{"role": "user", "content": chat_content(text, question.images, IMAGE_MARKER)}]
    messages, used = [], 0
    for message in build_messages(question, config.system_prompt, tools):
        count = message["content"].count(IMAGE_MARKER)
        images = question.images[used : used + count]
        messages.append({"role": message["role"], "content": chat_content(message["content"], images, IMAGE_MARKER)})
        used += count
    if used != len(question.images):
        raise ValueError(f"{len(question.images)} images but {used} {IMAGE_MARKER} markers in the prompt")
    return messages


def turns_text(turns: Sequence[TurnRecord]) -> str:
    """Returns everything after the prompt as text: turns and observations, one after the other."""
    return "\n".join(part for turn in turns for part in (turn.text, turn.observation) if part is not None)
