"""Jitted generation: paged key/value memory, prefill and decode dispatches, sampling, prefix and picture reuse."""

from dv2_jax.engine.engine import Engine, TurnOutput
from dv2_jax.engine.sampling import forbidden_ids
from dv2_jax.engine.stop_strings import StopAutomaton

__all__ = ["Engine", "StopAutomaton", "TurnOutput", "forbidden_ids"]
