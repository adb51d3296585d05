"""Counters of one rollout, for telemetry."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field

from dv2_jax.engine.engine import EngineStats


@dataclass
class RolloutStats:
    """Counts since the rollout began; `summary` flattens them."""

    trajectories: int = 0
    at_start: EngineStats = field(default_factory=EngineStats)
    turns: int = 0
    requests: int = 0
    retries: int = 0  # attempts begun afresh after an infrastructure failure
    dropped: int = 0  # trajectories out of the loss
    expired: int = 0  # requests that got no result in time
    latency_s: list[float] = field(default_factory=list)  # from submission to result: the time a slot is parked
    tool_ms: list[float] = field(default_factory=list)  # in the tool itself
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    _engine: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at_start = dataclasses.replace(self.at_start)
        self._began = time.perf_counter()

    def answered(self, kind: str, status: str, latency_s: float, tool_ms: float) -> None:
        self.latency_s.append(latency_s)
        self.tool_ms.append(tool_ms)
        self.outcomes[f"{kind}_{status.lower()}"] += 1

    def end(self, engine: EngineStats) -> None:
        self.seconds = time.perf_counter() - self._began
        now, before = dataclasses.asdict(engine), dataclasses.asdict(self.at_start)
        self._engine = {name: now[name] - before[name] for name in now}

    def summary(self) -> dict[str, float]:
        """Flat numbers: seconds, milliseconds, counts, tokens per second."""
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
            **{f"tool_{name}": count for name, count in sorted(self.outcomes.items())},
        }
