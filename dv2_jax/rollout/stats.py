"""Counters and latencies of one rollout, for telemetry."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field

from dv2_jax.engine.engine_outputs import EngineStats


@dataclass
class RolloutStats:
    """Counters since the rollout started; `summary` flattens them for the metrics."""

    trajectories: int = 0
    engine_at_start: EngineStats = field(default_factory=EngineStats)
    turns: int = 0
    requests: int = 0
    retries: int = 0  # attempts restarted after an infrastructure failure
    dropped: int = 0  # trajectories dropped from the loss
    expired: int = 0  # tool requests that timed out
    latency_s: list[float] = field(
        default_factory=list
    )  # seconds from submission to result, while the sequence is parked
    tool_ms: list[float] = field(default_factory=list)  # milliseconds in the tool itself
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    _engine: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine_at_start = dataclasses.replace(self.engine_at_start)
        self._began = time.perf_counter()

    def record_tool_result(self, kind: str, status: str, latency_s: float, tool_ms: float) -> None:
        """Counts a tool result by kind and status, and records its latency (seconds) and tool time (milliseconds)."""
        self.latency_s.append(latency_s)
        self.tool_ms.append(tool_ms)
        self.statuses[f"{kind}_{status.lower()}"] += 1

    def finish(self, engine: EngineStats) -> None:
        """Ends the rollout: stores its duration and the engine's counters since its start."""
        self.seconds = time.perf_counter() - self._began
        self._engine = engine.since(self.engine_at_start)

    def summary(self) -> dict[str, float]:
        """Returns all numbers in one flat dictionary: counts, seconds, milliseconds, tokens per second."""
        latencies = sorted(self.latency_s)
        sampled = self._engine.get("sampled_tokens", 0)
        return {
            "trajectories": self.trajectories,
            "turns": self.turns,
            "tool_requests": self.requests,
            "tool_latency_s_mean": sum(latencies) / len(latencies) if latencies else 0.0,
            "tool_latency_s_p95": latencies[int(0.95 * (len(latencies) - 1))] if latencies else 0.0,
            "tool_latency_s_max": latencies[-1] if latencies else 0.0,
            "tool_ms_mean": sum(self.tool_ms) / len(self.tool_ms) if self.tool_ms else 0.0,
            "parked_s": sum(latencies),
            "retries": self.retries,
            "expired": self.expired,
            "dropped": self.dropped,
            "seconds": self.seconds,
            "tokens_per_s": sampled / self.seconds if self.seconds else 0.0,
            **self._engine,
            **{f"tool_{name}": count for name, count in sorted(self.statuses.items())},
        }
