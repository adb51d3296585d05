"""A fake engine with scripted turns, and fault-injecting wrappers of the tools client.

The fake records the ids that the scheduler appends, so that a test can compare them with the trajectory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from dv2_jax.config import EngineConfig
from dv2_jax.data.chat_encoder import ChatEncoder
from dv2_jax.engine.engine_outputs import EngineStats, TurnOutput
from dv2_jax.rollout.scheduler import AttemptId
from tools_service.client import Status, ToolResult, ToolsClient


class ScriptedEngine:
    """Fake engine: `script(trajectory id, turn)` returns the text of a turn, which ends in the next step."""

    version = 6

    def __init__(self, encoder: ChatEncoder, script: Callable[[str, int], str]):
        self.config = EngineConfig(prefill_rows=2)
        self.stats = EngineStats()
        self.waiting = 0
        self.idle = False
        self.ids: dict[AttemptId, list[int]] = {}
        self.released: dict[AttemptId, list[int]] = {}
        self._encoder, self._script = encoder, script
        self._turns: dict[AttemptId, int] = {}
        self._asked: dict[AttemptId, int] = {}

    def add_sequence(self, seq_id: AttemptId, key: int) -> None:
        assert seq_id not in self.ids
        self.ids[seq_id], self._turns[seq_id] = [], 0

    def append(self, seq_id: AttemptId, token_ids, images=()) -> None:
        assert seq_id not in self._asked
        image_pad = self._encoder.tokenizer.id("<|image_pad|>")
        assert list(token_ids).count(image_pad) == sum(image.tokens for image in images)
        self.ids[seq_id] += token_ids

    def request_turn(self, seq_id: AttemptId, max_new_tokens: int, temperature: float) -> None:
        assert seq_id not in self._asked and max_new_tokens > 0
        self._asked[seq_id] = max_new_tokens

    def step(self) -> list[TurnOutput]:
        outputs = []
        for seq_id, limit in self._asked.items():
            text = self._script(seq_id.trajectory_id, self._turns[seq_id])
            token_ids = self._encoder.encode_assistant(text)
            finish = "eos" if token_ids[-1] == self._encoder.im_end else "stop"
            if len(token_ids) > limit:
                token_ids, finish = token_ids[:limit], "length"
            self._turns[seq_id] += 1
            self.ids[seq_id] += token_ids
            self.stats.sampled_tokens += len(token_ids)
            outputs.append(TurnOutput(seq_id, token_ids, [-0.5] * len(token_ids), finish, self.version))
        self._asked = {}
        self.idle = not outputs
        return outputs

    def free_sequence(self, seq_id: AttemptId) -> None:
        self.released[seq_id] = self.ids.pop(seq_id)
        self._asked.pop(seq_id, None)


class Passing:
    """Forwards everything to the client and records it."""

    def __init__(self, client: ToolsClient):
        self.client = client
        self.sent: list[str] = []
        self.batches: list[int] = []
        self.received: list[str] = []
        self.closed: list[str] = []

    def submit(self, requests) -> None:
        self.sent += [request.request_id for request in requests]
        self.batches.append(len(requests))
        self.client.submit(requests)

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        results = self.change(self.client.poll(timeout_s))
        self.received += [result.request_id for result in results]
        return results

    def close_sessions(self, ids) -> None:
        self.closed += ids
        self.client.close_sessions(ids)

    def change(self, results: list[ToolResult]) -> list[ToolResult]:
        return results


class Failing(Passing):
    """Replaces the first `times` results of the trajectories in `victims` by infrastructure failures."""

    def __init__(self, client: ToolsClient, victims: set[str], times: int, status: Status):
        super().__init__(client)
        self.left = dict.fromkeys(victims, times)
        self.status = status

    def change(self, results):
        return [self._fail(result) for result in results]

    def _fail(self, result: ToolResult) -> ToolResult:
        name = result.request_id.split(":")[1]
        if not self.left.get(name):
            return result
        self.left[name] -= 1
        return ToolResult(result.request_id, result.kind, self.status, message="the machine is gone")


class Swallowing(Passing):
    """Delays the first result until after the second one."""

    kept: ToolResult | None = None
    done = False

    def change(self, results):
        if self.kept is None and results and not self.done:
            self.kept, results = results[0], results[1:]
        elif self.kept is not None and results:
            results, self.kept, self.done = [*results, self.kept], None, True
        return results


class Doubling(Passing):
    """Returns every result twice."""

    def change(self, results):
        return [result for result in results for _ in range(2)]


def replaced(config, **fields):
    return dataclasses.replace(config, **fields)
