"""Makes the requests of parsed tool calls, and names the sandbox sessions in which they run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dv2_jax.agent.tools.base import LocalCall, ParsedTurn, Refusal, RequestContext, Tool

if TYPE_CHECKING:
    from tools_service.client import Request, ToolResult


class ToolBackend(Protocol):
    """The methods of `rollout.local_calls.LocalCallRunner` that the scheduler uses."""

    def submit(self, requests: Sequence[Request | LocalCall]) -> None: ...
    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]: ...
    def close_sessions(self, ids: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class AttemptId:
    """Identifies one attempt to roll out a trajectory: the id of the engine's sequence."""

    run: str
    trajectory_id: str
    index: int  # index of the request in the run
    number: int  # 0 for the first attempt

    @property
    def session_id(self) -> str:
        """The id of the sandbox session, in characters that the tools service accepts for any trajectory id."""
        readable = re.sub(r"[^A-Za-z0-9._/-]", "_", self.trajectory_id)[:80]
        return f"{self.run}:{readable}:{self.index}.{self.number}"


def make_request(tool: Tool, turn: ParsedTurn, context: RequestContext) -> Request | LocalCall | Refusal:
    """Returns the request of a call; an exception of the tool costs this call, not the run, and is a warning."""
    try:
        return tool.request(turn, context)
    except Exception as error:
        warnings.warn(f"tool {tool.name!r} failed to make a request: {type(error).__name__}: {error}", stacklevel=2)
        return Refusal(f"{type(error).__name__}: {error}")
