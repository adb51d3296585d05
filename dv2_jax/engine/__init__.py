"""Inference engine: paged KV cache, chunked prefill, decoding, sampling, prefix sharing and image-embedding caching."""

from dv2_jax.engine.engine import Engine
from dv2_jax.engine.engine_outputs import TurnOutput
from dv2_jax.engine.sampling import forbidden_ids
from dv2_jax.engine.stop_strings import StopAutomaton

__all__ = ["Engine", "StopAutomaton", "TurnOutput", "forbidden_ids"]
